"""From a command line to a running daemon, or one sentence that says why not."""

from __future__ import annotations

import logging
import os
import resource
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from ckptd_daemon import app, config, environment, logs, mounts
from ckptd_daemon.door import listener, locks
from ckptd_proto import errors
from ckptd_proto.exits import EXIT_CODES, INTERRUPTED, last_words

logger = logging.getLogger(__name__)

_FLAGS: list[click.Parameter] = [
    click.Option(["--socket"], type=click.Path(path_type=Path), help="The public unix socket."),
    click.Option(
        ["--state-dir"], type=click.Path(path_type=Path), help="Cache, leases, log; a local disk."
    ),
    click.Option(["--log-level"], help="debug, info, warning or error."),
    click.Option(["--private"], is_flag=True, default=None, help="End by itself when idle."),
]


def main(arguments: list[str]) -> int:
    """Serve; return the exit code."""
    detached, as_json = "--detach" in arguments, "--json" in arguments
    if detached:  # a rank that is bound to a few cores must not bind everybody's daemon
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        flags = _parsed(arguments)
        file = flags.pop("config")
        settings = config.load({k: v for k, v in flags.items() if v is not None}, file=file)
        _run(settings, detached=detached)
    except errors.CkptdError as error:
        name = type(error).__name__
        sentence = f"{name}: {error}" if detached else str(error)  # for the client that reads it
        return _tell(name, sentence, EXIT_CODES[type(error)], as_json, error)
    except click.ClickException as error:
        return _tell("InvalidArgument", error.format_message(), error.exit_code, as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _tell(
    name: str, sentence: str, code: int, as_json: bool, error: Exception | None = None
) -> int:
    """Write the error to stderr; return *code*."""
    sys.stderr.write(last_words(name, sentence, code, error, json_=as_json))
    return code


def _parsed(arguments: list[str]) -> dict[str, Any]:
    command = click.Command(
        "serve",
        params=[
            *_FLAGS,
            click.Option(["--config"], type=click.Path(path_type=Path)),
            click.Option(["--detach"], is_flag=True, expose_value=False),
            click.Option(["--json"], is_flag=True, expose_value=False),
        ],
    )
    return command.make_context("ckptd_daemon", arguments).params


def _run(settings: config.Config, *, detached: bool) -> None:
    _allow_descriptors()
    make_state_dir(settings)
    lock = settings.state_dir / "daemon.lock"
    with locks.held(lock, f"the state in {settings.state_dir}", settings.socket):
        log = settings.state_dir / "daemon.log"
        logs.set_up(settings.log_level, log if detached else None)
        for warning in environment.warnings(os.environ):
            logger.warning(warning)
        others = bool(settings.allow_uids - {os.geteuid()})
        with listener.listening(settings.socket, for_others=others) as sockets:
            ready = partial(_let_go, log) if detached else None
            app.run(settings, sockets, on_ready=ready or (lambda: None))


def _allow_descriptors() -> None:
    """Take all the descriptors we may have: a client takes several, and a big node has many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _let_go(log: Path) -> None:
    """Leave the pipe to whoever started us; what libraries print goes to the log."""
    for path, fd in ((Path(os.devnull), 1), (log, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.dup2(opened, fd)
        os.close(opened)


def make_state_dir(settings: config.Config) -> None:
    """Create the state directory, private to its user, unless its filesystem is unfit."""
    kind = mounts.filesystem(settings.state_dir)
    if mounts.is_network(kind) and not settings.allow_network_fs:
        text = (
            f"the state directory {settings.state_dir} lies on a network filesystem ({kind}), "
            "where locks are weaker; use a local disk, or set allow_network_fs"
        )
        raise errors.FailedPrecondition(text)
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(settings.state_dir)
        if settings.allow_uids - {os.geteuid()}:
            # others reach what they were handed, and list nothing
            settings.state_dir.chmod(settings.state_dir.stat().st_mode | 0o111)
    except OSError as error:
        text = f"cannot create {settings.state_dir}: {error.strerror}; use another --state-dir"
        raise errors.PermissionDenied(text) from error


def _check_owner(state_dir: Path) -> None:
    """Raise unless the directory, and ours in /tmp if it lies there, is ours to write alone."""
    ours_in_tmp = Path(f"/tmp/ckptd-{os.getuid()}")
    for directory in {state_dir, ours_in_tmp} & {state_dir, *state_dir.parents}:
        found = directory.lstat() if directory == ours_in_tmp else directory.stat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not is_ours or found.st_mode & stat.S_IWOTH:
            text = (
                f"{directory} belongs to user {found.st_uid} or may be written by anyone; "
                "use another --state-dir"
            )
            raise errors.PermissionDenied(text)
