"""Every setting, with its unit and the reason for its default.

Order: TOML file < `CKPTD_*` environment < command-line flags. In the environment several
uids are written `1000,1001`, several paths `/a:/b`, and rates by host
`models.example=50000000,mirror.example:8443=1000000`.
"""

from __future__ import annotations

import os
import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ckptd_daemon import mounts
from ckptd_proto import errors
from ckptd_proto.urls import display

SOCKET_PATH_MAX_BYTES = 107  # sun_path of Linux, less the final NUL


def default_socket() -> Path:
    """systemd's runtime directory, else the user's, else a private one below /tmp."""
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(runtime.split(":")[0], "ckptd.sock")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "ckptd", "ckptd.sock")
    return Path(f"/tmp/ckptd-{os.getuid()}/ckptd.sock")


def _default_state_dir() -> Path:
    """systemd's state directory, else the user's cache if on a local disk, else below /tmp."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    cache = os.environ.get("XDG_CACHE_HOME")
    state_dir = Path(cache, "ckptd") if cache else Path.home() / ".cache" / "ckptd"
    if mounts.is_network(mounts.filesystem(state_dir)):
        return Path(f"/tmp/ckptd-{os.getuid()}/state")
    return state_dir


def _default_floor_percent() -> float:
    """Stay above the 15 % below which a kubelet evicts pods, where there is one."""
    is_node = "KUBERNETES_SERVICE_HOST" in os.environ or Path("/var/lib/kubelet").exists()
    return 16.0 if is_node else 5.0


class Config(BaseSettings):
    """The settings of one daemon. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="CKPTD_", extra="forbid", frozen=True)

    socket: Path = Field(default_factory=default_socket)
    """The public unix socket."""
    state_dir: Path = Field(default_factory=_default_state_dir)
    """Cache, leases, log and lock; on a local disk."""
    private: bool = False
    """Started on demand by a client: ends by itself after `idle_s`."""
    idle_s: float = Field(900.0, gt=0)
    """How long a private daemon without work or leases stays."""
    allow_network_fs: bool = False
    """Accept a `state_dir` on a network filesystem, where locks and leases are weaker."""
    allow_uids: Annotated[frozenset[int], NoDecode] = frozenset()
    """Users served besides the daemon's own."""
    read_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Below these, and nowhere else, other users may have the daemon read."""
    save_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Below these, and nowhere else, other users may have the daemon save."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`debug`, `info`, `warning` or `error`."""
    drain_s: float = Field(25.0, ge=0)
    """How long SIGTERM lets work finish: below systemd's and Kubernetes' 30 s and up."""
    preemption_notice: Path | None = None
    """A file that says, once it is there, that this node is about to go away; see below."""
    preemption_poll_s: float = Field(1.0, gt=0)
    """How often it is looked for."""

    arena_dir: Path = Path("/dev/shm")
    """Where saves are staged: a filesystem in memory, fastest if mounted with `huge=within_size`."""
    arena_bytes: int | None = Field(None, gt=0)
    """Budget for staged saves; default: half of what `arena_dir` and the memory have free."""

    slots_per_rank: int = Field(2, ge=1)
    """Saves of one rank that may be staged at once: one persists while the next is copied."""
    persist_threads: int = Field(3, ge=1, le=64)
    """Parallel writers of staged images; a few saturate a disk, more take CPU from training."""
    persist_cpu_percent: float = Field(15.0, gt=0, le=100)
    """Share of all cores that writing may take while training wants them all; idle ones are free."""
    persist_retry_s: float = Field(300.0, ge=0)
    """How long what is staged waits for a place that fails, is full or not mounted, before it is lost."""

    takeover_s: float = Field(30.0, gt=0)
    """With ranks on several nodes: how long a save waits for the node of rank 0 to commit it."""
    peers_wait_s: float = Field(900.0, gt=0)
    """How long it waits for a node that does not deliver, before it is given up for all."""

    cache_bytes: int | None = Field(None, gt=0)
    """Quota of the cache; default: none but `free_floor_bytes`."""
    free_floor_bytes: int = Field(1 << 30, ge=0)
    """Disk space that the cache leaves free, and no less than the next one."""
    free_floor_percent: float = Field(default_factory=_default_floor_percent, ge=0, lt=100)
    """The same as a share of the disk; default: 16 on a Kubernetes node, else 5."""
    quota_high_percent: float = Field(85.0, gt=0, le=100)
    """When more than this share of the quota is taken, what nobody uses goes …"""
    quota_low_percent: float = Field(75.0, gt=0, le=100)
    """… until it is no more than this; what fits the quota is never refused for it."""
    hash_after_s: float = Field(60.0, ge=0)
    """When nothing was fetched or saved for so long, files that came without a SHA-256 get one; inf:
    never."""
    wait_for_room_s: float = Field(300.0, ge=0)
    """How long a fetch waits for others to leave the cache, before it fails."""
    streams: int = Field(8, ge=1, le=256)
    """Parallel ranges from a host to begin with; how many it gets follows what they bring."""
    streams_max: int = Field(64, ge=1, le=256)
    """Parallel ranges of the whole daemon; set it to `streams` for a fixed number."""
    connect_s: float = Field(10.0, gt=0)
    """How long one address of an origin has to take a connection."""
    first_byte_s: float = Field(15.0, gt=0)
    """A request that is not answered for so long is made again, on a new connection."""
    stall_s: float = Field(20.0, gt=0)
    """A stream that brings nothing for so long is given up and its rest asked for again."""
    retries: int = Field(5, ge=0)
    """How often one range may fail in a row before the flight does; not counting 429, 503,
    509 and 529 for two minutes, while others are served or nothing has ever come from that host."""
    linger_s: float = Field(10.0, ge=0)
    """How long a flight goes on after its last waiter has left."""
    failure_s: float = Field(5.0, ge=0)
    """How long a failed fetch is answered for by its failure, before the origin is asked again."""
    revalidate_s: float = Field(10.0, ge=0)
    """How long an answer about an object's version is believed."""
    max_bytes_per_s: PositiveInt | None = None
    """What all fetches together may bring from the network; default: no limit."""
    source_max_bytes_per_s: Annotated[dict[str, PositiveInt], NoDecode] = {}
    """The same by host, or host:port, also for what it redirects elsewhere."""
    offline: bool = False
    """Answer from the cache and from local files only; open no connection to anywhere."""
    proxy: SecretStr | None = None
    """URL of an HTTP proxy for everything; default: what `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`
    say."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust besides the system's."""

    def shown(self) -> dict[str, Any]:
        """Return every setting in the plain values of JSON, a proxy without its password."""
        shown: dict[str, Any] = self.model_dump(mode="json")
        if self.proxy is not None:
            shown["proxy"] = display(self.proxy.get_secret_value())
        return shown

    @field_validator("socket")
    @classmethod
    def _socket_fits(cls, socket: Path) -> Path:
        length = len(os.fsencode(socket.absolute()))
        if length > SOCKET_PATH_MAX_BYTES:
            text = f"the path is {length} bytes long, and the kernel allows {SOCKET_PATH_MAX_BYTES}"
            raise ValueError(text)
        return socket.absolute()

    @field_validator("allow_uids", "read_roots", "save_roots", mode="before")
    @classmethod
    def _several(cls, value: object, info: ValidationInfo) -> object:
        """Take apart what the environment says in one string."""
        if not isinstance(value, str):
            return value
        separator = "," if info.field_name == "allow_uids" else ":"
        return [part for part in value.split(separator) if part]

    @field_validator("quota_low_percent")
    @classmethod
    def _is_below_high(cls, low: float, info: ValidationInfo) -> float:
        high = info.data.get("quota_high_percent", low)  # which may be wrong itself
        if low > high:
            text = f"{low:g} is above quota_high_percent, {high:g}; give the same or less"
            raise ValueError(text)
        return low

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        parts = urlsplit(proxy.get_secret_value() if proxy is not None else "http://none")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
        return proxy

    @field_validator("ca_file")
    @classmethod
    def _holds_certificates(cls, file: Path | None) -> Path | None:
        """Find out now and not at the first fetch."""
        if file is None:
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except ssl.SSLError as error:
            raise ValueError(f"{file} holds no certificates in PEM") from error
        except OSError as error:
            raise ValueError(f"cannot read {file}: {error.strerror}") from error
        return file.absolute()

    @field_validator("source_max_bytes_per_s", mode="before")
    @classmethod
    def _rates(cls, value: object) -> object:
        """Take apart what the environment says in one string."""
        if not isinstance(value, str):
            return value
        return {host: rate for host, _, rate in (each.rpartition("=") for each in value.split(","))}

    @field_validator("state_dir", "arena_dir", "preemption_notice")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(flags: dict[str, Any], *, file: Path | None) -> Config:
    """Return the settings from *flags*, the environment and *file*; raises `InvalidArgument`."""

    class FileConfig(Config):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        if file is not None:
            file.open().close()  # pydantic would silently go on without a file
        return FileConfig(**flags)
    except ValidationError as error:
        wrong = "; ".join(f"{_option(line)}: {line['msg']}" for line in error.errors())
        raise errors.InvalidArgument(f"the configuration is wrong: {wrong}") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise errors.InvalidArgument(f"cannot read the configuration {file}: {error}") from error


def _option(line: ErrorDetails) -> str:
    return ".".join(str(part) for part in line["loc"])
