"""Fetching many references in one call, and fetching ahead of need."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptd.fetching import (
    Ask,
    Handed,
    OnProgress,
    Patterns,
    forgotten_unless_seen,
    left_s,
    progress_of,
    request_of,
    usual_connection,
)
from ckptd_proto import errors, refs

if TYPE_CHECKING:
    from ckptd.link.connection import Connection, Stubs
    from ckptd_proto.v1 import blobs_pb2

Refs = Sequence[str | os.PathLike[str]]
REQUESTS_MAX = 1_000  # per call, and
REQUEST_MAX_BYTES = 512 << 10  # half of what the daemon takes
KEEP_S = 3600.0
ANSWER_S = 30.0


def fetch_many(
    refs: Refs,
    *,
    sha256: Sequence[str | None] | None = None,
    on_progress: OnProgress | None = None,
    keep_s: float = 0.0,
    offline: bool = False,
    timeout: float | None = None,
) -> list[Path]:
    """Return the local paths of all *refs*, in their order, fetched side by side.

    All or nothing: the first that cannot be had raises its error, which says which it was, and
    then this call holds none of them. What was under way the node goes on with for a while.

    Args:
        refs: As for `fetch`; directories too.
        sha256: What the bytes of each must hash to, in hex; None where that is not known.
        on_progress: Called on this thread, a few times a second, with all of them as one.
        keep_s: How many seconds the files stay after this process has ended.
        offline: Answer from the cache or fail.
        timeout: Seconds for all of them together until `DeadlineExceeded`.

    Raises:
        CkptdError: One of `ckptd.errors`, by what you can do about it.
    """
    ask = Ask("", None, on_progress, keep_s, offline, timeout)
    return fetched_many(usual_connection, refs, sha256, ask)


def prefetch(
    refs: Refs,
    *,
    keep_s: float = KEEP_S,
    include: Patterns = (),
    exclude: Patterns = (),
) -> None:
    """Have the node fetch *refs* ahead of need; returns once the daemon has taken them on.

    Nobody needs to wait: the flights go on when this process has ended, until they are done or
    have failed, which `ckptd status` tells, or `ckptd prefetch --withdraw` ends them. A daemon
    that is restarted goes on with them, but for a URL with a password or query: these are not
    written down, and `ckptd status` tells that it has to be asked for again. Offline, what is not
    in the cache is refused.

    Args:
        refs: URLs, as for `fetch_many`; one that ends with `/` is a directory.
        keep_s: How many seconds each stays at least once it is here.
        include: Which files of a directory, as for `fetch`.
        exclude: Which of these not.
    """
    prefetched(usual_connection, refs, Ask("", keep_s=keep_s, include=include, exclude=exclude))


def prefetched(connect: Callable[[], Connection], refs: Refs, ask: Ask) -> None:
    """Have the daemon that *connect* gives take on *refs*, as *ask* says."""
    _require_several(refs)
    for ref in refs:
        request = request_of(replace(ask, ref=os.fspath(ref)))
        connect().call(lambda stubs: stubs.blobs.Prefetch(request, timeout=ANSWER_S))  # noqa: B023  called at once


def withdrawn(connect: Callable[[], Connection], refs: Refs) -> int:
    """End the prefetches of *refs* by the daemon that *connect* gives; returns how many."""
    from ckptd_proto.v1 import blobs_pb2

    _require_several(refs)
    count = 0
    for ref in refs:
        request = blobs_pb2.WithdrawRequest(ref=os.fspath(ref))
        reply = connect().call(lambda stubs: stubs.blobs.Withdraw(request, timeout=ANSWER_S))  # noqa: B023  called at once
        count += reply.prefetches
    return count


def fetched_many(
    connect: Callable[[], Connection], names: Refs, sha256: Sequence[str | None] | None, ask: Ask
) -> list[Path]:
    """Fetch by the daemon that *connect* gives; local paths need none."""
    return [each.path for each in handed_many(connect, names, sha256, ask)]


def handed_many(
    connect: Callable[[], Connection], names: Refs, sha256: Sequence[str | None] | None, ask: Ask
) -> list[Handed]:
    """Do as `fetched_many`, and tell what speaks for the bytes of each."""
    _require_several(names)
    stated = [None] * len(names) if sha256 is None else sha256
    if len(stated) != len(names):
        text = f"{len(names)} references and {len(stated)} SHA-256s; state one, or None, for each"
        raise errors.InvalidArgument(text)
    deadline = None if ask.timeout is None else time.monotonic() + ask.timeout
    found: dict[int, Handed] = {}
    remote: dict[int, Ask] = {}
    for index, (name, hash_) in enumerate(zip(names, stated, strict=True)):
        ref = refs.parse(os.fspath(name), hash_)
        if ref.path is not None:
            found[index] = Handed.local(ref.path, ref.sha256)
        else:
            remote[index] = replace(ask, ref=os.fspath(name), sha256=hash_)
    if remote:
        connection = connect()
        with forgotten_unless_seen(connection, ask):
            for group in _groups(remote):
                found |= _fetched(connection, group, ask, deadline)
    return [found[index] for index in range(len(names))]


def _require_several(names: Refs) -> None:
    if isinstance(names, (str, os.PathLike)):
        text = f"refs is the single {os.fspath(names)!r}; give a sequence of refs, such as a list"
        raise errors.InvalidArgument(text)


def _groups(asks: dict[int, Ask]) -> Iterator[dict[int, blobs_pb2.FetchRequest]]:
    """Cut what is asked for into messages of a size that the daemon takes."""
    group: dict[int, blobs_pb2.FetchRequest] = {}
    size = 0
    for index, ask in asks.items():
        request = request_of(ask)
        if group and (len(group) == REQUESTS_MAX or size + request.ByteSize() > REQUEST_MAX_BYTES):
            yield group
            group, size = {}, 0
        group[index] = request
        size += request.ByteSize()
    yield group


def _fetched(
    connection: Connection,
    group: dict[int, blobs_pb2.FetchRequest],
    ask: Ask,
    deadline: float | None,
) -> dict[int, Handed]:
    places = list(group)
    messages = connection.call(
        lambda stubs: _stream(stubs, list(group.values()), ask, deadline),
        timeout_s=left_s(deadline),
    )
    return {places[at]: Handed.of(message) for at, message in messages.items()}


def _stream(
    stubs: Stubs, requests: list[blobs_pb2.FetchRequest], ask: Ask, deadline: float | None
) -> dict[int, blobs_pb2.Blob]:
    """Take in what comes until all of it is here."""
    import grpc

    from ckptd.link import wire
    from ckptd_proto.v1 import blobs_pb2

    request = blobs_pb2.FetchManyRequest(requests=requests)
    events = stubs.blobs.FetchMany(request, timeout=left_s(deadline))
    found: dict[int, blobs_pb2.Blob] = {}
    try:
        with stubs.silence.noticed():
            for event in events:
                found |= {fetched.index: fetched.blob for fetched in event.fetched}
                if ask.on_progress is not None:
                    ask.on_progress(progress_of(event.progress))
    except grpc.RpcError as error:
        if isinstance(wire.typed(error), errors.DeadlineExceeded):
            text = (
                f"{len(found)} of {len(requests)} had arrived after {ask.timeout:g} s; the daemon "
                "keeps what it has: ask again, or give it more time"
            )
            raise errors.DeadlineExceeded(text) from error
        raise
    finally:
        events.cancel()  # no harm once it has ended
    if len(found) < len(requests):
        raise errors.Unavailable("the daemon ended the fetch without an answer; ask again")
    return found
