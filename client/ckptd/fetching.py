"""Fetching: a reference becomes a local, verified, read-only file."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ckptd import environment
from ckptd.values import Progress
from ckptd_proto import errors, refs
from ckptd_proto.urls import display

if TYPE_CHECKING:
    from ckptd.link.connection import Connection, Stubs
    from ckptd_proto.v1 import blobs_pb2

_UNSEEN = (errors.Aborted, errors.DeadlineExceeded, errors.FailedPrecondition)
"""After these the daemon may have granted a lease that nobody uses."""

OnProgress = Callable[[Progress], object]
Patterns = str | Sequence[str]
RELEASE_S = 5.0


def fetch(
    ref: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    on_progress: OnProgress | None = None,
    keep_s: float = 0.0,
    offline: bool = False,
    timeout: float | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Path:
    """Return the local path of what *ref* names, fetching it if nobody on this node has.

    The file is verified and read-only, and it stays until this process ends, and *keep_s* longer.

    Args:
        ref: A path, `file://…` or `http(s)://…`; `#sha256=…` may follow. A URL that ends with `/`
            is a directory: what is below it, as its index page or its manifest says. A directory
            of this node is returned as it is.
        sha256: What the bytes must hash to, in hex.
        on_progress: Called on this thread, a few times a second.
        keep_s: How many seconds the file stays after this process has ended.
        offline: Answer from the cache or fail; `CKPTD_OFFLINE=1` says so for all of a process.
        timeout: Seconds until `DeadlineExceeded`; the node goes on fetching for a while.
        include: Which files of a directory, by patterns on their relative paths as `fnmatch` reads
            them (`*` crosses `/`, `**/` is any directories or none); all if none are given.
        exclude: Which of these not.

    Raises:
        CkptdError: One of `ckptd.errors`, by what you can do about it.
    """
    ask = Ask(
        os.fspath(ref),
        sha256,
        on_progress,
        keep_s,
        offline,
        timeout,
        include=include,
        exclude=exclude,
    )
    return fetched(usual_connection, ask)


@contextmanager
def open(
    ref: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    on_progress: OnProgress | None = None,
    offline: bool = False,
    timeout: float | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Iterator[Path]:
    """Fetch *ref* as `fetch` does, and hold what it is inside the block only."""
    ask = Ask(
        os.fspath(ref),
        sha256,
        on_progress,
        0.0,
        offline,
        timeout,
        include=include,
        exclude=exclude,
    )
    with opened(usual_connection, ask) as path:
        yield path


@dataclass(frozen=True, slots=True)
class Ask:
    """The arguments of `fetch`."""

    ref: str
    sha256: str | None = None
    on_progress: OnProgress | None = None
    keep_s: float = 0.0
    offline: bool = False
    timeout: float | None = None
    hold: str = ""
    """Names the lease that `release` gives back; without one it lasts as long as the process."""
    include: Patterns = ()
    exclude: Patterns = ()
    call: str = field(default_factory=lambda: secrets.token_hex(16))
    """Names this very fetch, for `forget` to give back what it took and nobody saw."""


@dataclass(frozen=True, slots=True)
class Handed:
    """What a fetch came to."""

    path: Path
    sha256: str | None
    verification: str | None
    """None where there is nothing to verify: a directory, or a file that was here already."""

    @classmethod
    def local(cls, named: Path, sha256: str | None) -> Self:
        """Return what is *named* on this node; raises `NotFound` or `DataLoss`."""
        return cls(local(named, sha256), sha256, None if sha256 is None else "sha256")

    @classmethod
    def of(cls, message: blobs_pb2.Blob) -> Self:
        """Return what the daemon hands over, if it is the same file here."""
        require_same_file(message)
        return cls(Path(message.path), message.sha256 or None, verification_of(message))


def fetched(connect: Callable[[], Connection], ask: Ask) -> Path:
    """Fetch by the daemon that *connect* gives; a local path needs none."""
    return handed(connect, ask).path


def handed(connect: Callable[[], Connection], ask: Ask) -> Handed:
    """Do as `fetched`, and tell what speaks for the bytes."""
    ref = refs.parse(ask.ref, ask.sha256)
    if ref.path is not None:
        return Handed.local(ref.path, ref.sha256)
    deadline = None if ask.timeout is None else time.monotonic() + ask.timeout
    connection = connect()
    with forgotten_unless_seen(connection, ask):
        message = connection.call(
            lambda stubs: _answer(stubs, ask, deadline), timeout_s=left_s(deadline)
        )
        return Handed.of(message)


@contextmanager
def forgotten_unless_seen(connection: Connection, ask: Ask) -> Iterator[None]:
    """If the block fails, let *ask* hold nothing: its answer may be on the way."""
    from ckptd.link import calls

    try:
        yield
    except BaseException as error:
        if not isinstance(error, errors.CkptdError) or isinstance(error, _UNSEEN):
            with calls.untracked():
                forget(lambda: connection, ask)
        raise


@contextmanager
def opened(connect: Callable[[], Connection], ask: Ask) -> Iterator[Path]:
    """Fetch, and give the lease back at the end of the block, also when the fetch fails.

    Its answer may be lost when the daemon has granted the lease already.
    """
    ask = replace(ask, hold=secrets.token_hex(16))
    try:
        yield fetched(connect, ask)
    finally:
        release(connect, ask)


def is_offline() -> bool:
    """Say whether this process's environment wants everything answered from the cache."""
    return environment.flag("CKPTD_OFFLINE", default=False)


def usual_connection() -> Connection:
    """Return this process's connection to the daemon that the environment says."""
    from ckptd.link.connection import Connection

    return Connection.open()


def left_s(deadline: float | None) -> float | None:
    """Return the seconds until *deadline*, by the monotonic clock."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def local(named: Path, sha256: str | None) -> Path:
    """Return the absolute path of what is *named* if it is there, and is what was stated."""
    path = named.absolute()
    try:
        if sha256 is None:
            path.stat()
            return path
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise refs.missing(named, path) from None
    except IsADirectoryError:
        text = f"{path} is a directory, and a SHA-256 can only be stated for a file"
        raise errors.InvalidArgument(text) from None
    except PermissionError as error:
        raise errors.PermissionDenied(f"you may not read {path}") from error
    if found != sha256:
        raise errors.DataLoss(f"{path} has the SHA-256 {found}, not the stated {sha256}")
    return path


def request_of(ask: Ask) -> blobs_pb2.FetchRequest:
    """Return what the daemon is told."""
    from ckptd_proto.v1 import blobs_pb2

    return blobs_pb2.FetchRequest(
        ref=ask.ref,
        sha256=ask.sha256 or "",
        keep_s=ask.keep_s,
        offline=ask.offline or is_offline(),
        hold=ask.hold,
        call=ask.call,
        include=_several(ask.include),
        exclude=_several(ask.exclude),
        quiet=ask.on_progress is None
        and ask.timeout is None,  # who runs late is told how far it is
    )


def _answer(stubs: Stubs, ask: Ask, deadline: float | None) -> blobs_pb2.Blob:
    """Ask for what is here already, which is cheap; else take in progress until the file comes."""
    import grpc

    from ckptd.link import wire

    request, progress = request_of(ask), None
    try:
        found = stubs.questions.find(request, timeout_s=left_s(deadline))
        if found is None:
            found = stubs.blobs.Find(request, timeout=left_s(deadline))
        if found.HasField("blob"):
            return found.blob
        events = stubs.blobs.Fetch(request, timeout=left_s(deadline))
        try:
            with stubs.silence.noticed():
                for event in events:
                    if event.HasField("blob"):
                        return event.blob
                    progress = progress_of(event.progress)
                    if ask.on_progress is not None:
                        ask.on_progress(progress)
        finally:
            events.cancel()  # no harm once it has ended
    except grpc.RpcError as error:
        if isinstance(wire.typed(error), errors.DeadlineExceeded):
            raise errors.DeadlineExceeded(_late(ask, progress)) from error
        raise
    raise errors.Unavailable("the daemon ended the fetch without an answer; ask again")


def _several(patterns: Patterns) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _late(ask: Ask, progress: Progress | None) -> str:
    """Say what was waited for in vain."""
    name, how_far = display(refs.parse(ask.ref).url or ""), "the daemon has not begun"
    if progress is not None:
        total = "an unknown number of" if progress.total_bytes is None else progress.total_bytes
        how_far = f"{progress.phase}, {progress.done_bytes} of {total} bytes"
        how_far += f", {progress.reason}" if progress.reason else ""
    return (
        f"{name} had not arrived after {ask.timeout:g} s ({how_far}); the daemon goes on for a "
        "while and keeps what it has: ask again, or give it more time"
    )


def progress_of(message: blobs_pb2.FetchProgress) -> Progress:
    """Return how far a fetch is, as users see it."""
    from ckptd_proto.v1 import blobs_pb2

    phase = blobs_pb2.FetchPhase.Name(message.phase).removeprefix("FETCH_PHASE_").lower()
    total = message.total_bytes if message.HasField("total_bytes") else None
    return Progress(
        phase,
        message.done_bytes,
        total,
        message.streams,
        message.reason,
        message.cause,
        message.rate_bytes_per_s,
        message.eta_s if message.HasField("eta_s") else None,
    )


def verification_of(message: blobs_pb2.Blob) -> str | None:
    """Return what a blob was checked against, as users see it."""
    from ckptd_proto.v1 import blobs_pb2

    name = blobs_pb2.Verification.Name(message.verification)
    word = name.removeprefix("VERIFICATION_").lower()
    return None if word == "unspecified" else word


def require_same_file(message: blobs_pb2.Blob) -> None:
    """Notice a daemon in another mount namespace before its path misleads the caller."""
    theirs = f"device {message.device} inode {message.inode}"
    try:
        found = os.stat(message.path)  # noqa: PTH116  the path is the daemon's word, to be checked
    except OSError as error:
        ours = error.strerror or "unreadable"
    else:
        if (found.st_dev, found.st_ino) == (message.device, message.inode):
            return
        ours = f"device {found.st_dev} inode {found.st_ino}"
    raise errors.FailedPrecondition(
        f"{message.path} is {theirs} for the daemon, and for this process it is {ours}: "
        "they see different files; mount the daemon's cache here under the same path"
    )


def release(connect: Callable[[], Connection], ask: Ask) -> None:
    """Give back what *ask* holds, if the daemon is there and ever gave it."""
    if refs.parse(ask.ref).path is None:
        _tell_release(connect, hold=ask.hold)


def forget(connect: Callable[[], Connection], ask: Ask) -> None:
    """End the fetch of *ask*, and give back what it took though nobody saw it."""
    _tell_release(connect, call=ask.call)


def _tell_release(connect: Callable[[], Connection], *, hold: str = "", call: str = "") -> None:
    from ckptd_proto.v1 import blobs_pb2

    request = blobs_pb2.ReleaseRequest(hold=hold, call=call)
    try:
        connect().call(
            lambda stubs: stubs.blobs.Release(request, timeout=RELEASE_S), timeout_s=RELEASE_S
        )
    except (errors.Unavailable, errors.DeadlineExceeded):
        return  # it then ends with this process
