"""Opening a safetensors object: a local file, one of the cache, or one on its way."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from ckptd import fetching
from ckptd.fetching import Ask, OnProgress
from ckptd.reading.arrival import Arrival, Data
from ckptd.reading.tensors import Tensors, Want, read_header, settle
from ckptd_proto import errors, refs
from ckptd_proto.urls import display

if TYPE_CHECKING:
    import torch

    from ckptd.link.connection import Connection

Verify = Literal["transport"] | None


@contextmanager
def open_tensors(
    ref: str | os.PathLike[str],
    *,
    tensors: Iterable[str] | None = None,
    sha256: str | None = None,
    verify: Verify = None,
    device: str | torch.device = "cpu",
    offline: bool = False,
    timeout: float | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Tensors]:
    """Read the tensors of a safetensors object while it is being fetched; for `with` only.

    Write `with ckptd.open_tensors(url) as tensors:`; the file is held that long. The
    block gets a `Tensors` as soon as the header is here: its names, shapes and metadata at
    once, each tensor when its bytes are. All processes of the node share one transfer, and what
    somebody waits for is fetched first. Leaving the block waits for no more than its verdict:

    Where a checksum of the whole is known (the SHA-256 that you state, or what the store does),
    nothing is handed out before the file was compared with it. With `verify="transport"` tensors
    come at once, checked only as every reply of the origin is (its version, range and length), and
    leaving the block waits for the comparison: `DataLoss` then says that what was read does not
    count. Where no checksum is known, that check is all there is, and nothing needs to be asked.

    A SHA-256 is of the whole file: where you state one, all of it is fetched and compared, also with
    `tensors=[…]`, which then come first. The store's checksum brings nothing that was not asked for:
    with `tensors=[…]` and `verify="transport"` it is not compared.

    Args:
        ref: A path, `file://…` or `http(s)://…`; `#sha256=…` may follow.
        tensors: Fetch only these, by name, in pieces of 16 MiB, or these first where a SHA-256 is
            stated; others still come when they are asked for. Without it the whole file is fetched
            while the block lasts.
        sha256: What the bytes of the file must hash to, in hex.
        verify: `"transport"` hands tensors out before that was compared.
        device: Where tensors are put, as torch calls it.
        offline: Answer from the cache or fail.
        timeout: Seconds that opening, then each wait for a tensor, and the comparison may take.
        on_progress: Called on a thread of ours, a few times a second.

    Raises:
        DataLoss: It is no whole safetensors file, or not the one that was stated.
        Aborted: It changed while it was read.
        NotFound: It does not exist, or has no tensor that was asked for.
        CkptdError: Others of `ckptd.errors`, by what you can do about it.
    """
    ask = TensorsAsk.of(ref, tensors, sha256, verify, device, offline, timeout, on_progress)
    with read_tensors(fetching.usual_connection, ask) as tensors_here:
        yield tensors_here


@dataclass(frozen=True, slots=True)
class TensorsAsk:
    """The arguments of `open_tensors`."""

    fetch: Ask
    tensors: tuple[str, ...] | None
    verify: Verify
    device: str

    @classmethod
    def of(
        cls,
        ref: str | os.PathLike[str],
        tensors: Iterable[str] | None,
        sha256: str | None,
        verify: Verify,
        device: str | torch.device,
        offline: bool,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> Self:
        """Return the arguments as users give them."""
        if isinstance(tensors, str):
            text = (
                f"tensors is the single name {tensors!r}; give a sequence of names: [{tensors!r}]"
            )
            raise errors.InvalidArgument(text)
        hold = secrets.token_hex(16)
        fetch = Ask(os.fspath(ref), sha256, on_progress, 0.0, offline, timeout, hold)
        return cls(fetch, None if tensors is None else tuple(tensors), verify, str(device))


@contextmanager
def read_tensors(connect: Callable[[], Connection], ask: TensorsAsk) -> Iterator[Tensors]:
    """Open as `opened_tensors` does; leaving the block waits for the verdict on what was read."""
    with opened_tensors(connect, ask) as tensors:
        yield tensors
        settle(tensors)


@contextmanager
def opened_tensors(connect: Callable[[], Connection], ask: TensorsAsk) -> Iterator[Tensors]:
    """Open by the daemon that *connect* gives; a local file needs none.

    What was read counts once `settle` has returned.
    """
    if ask.verify not in (None, "transport"):
        text = f'verify is {ask.verify!r}; give "transport", or nothing to wait for the whole'
        raise errors.InvalidArgument(text)
    ref = refs.parse(ask.fetch.ref, ask.fetch.sha256)
    is_whole = ask.tensors is None or ref.sha256 is not None  # a hash is of all of it
    deadline = None if ask.fetch.timeout is None else time.monotonic() + ask.fetch.timeout
    with ExitStack() as stack:
        if ref.path is not None:
            arrival, want = _local(fetching.local(ref.path, ref.sha256))
        else:
            title = display(ref.url or "")
            opened = _remote(connect, ask, title, is_whole=is_whole)
            arrival, want = stack.enter_context(opened)
        stack.callback(arrival.close)
        yield Tensors(
            arrival,
            read_header(arrival, want, deadline),
            ask.tensors,
            is_whole=is_whole,
            want=want,
            device=ask.device,
            timeout=ask.fetch.timeout,
        )


def _local(path: Path) -> tuple[Arrival, Want]:
    """Return a local file, all of which is here."""
    arrival = Arrival(str(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise errors.PermissionDenied(f"you may not read {path}") from error
    data = Data(fd, os.fstat(fd).st_size)
    arrival.open("", data)
    arrival.land([(0, data.size_bytes)])
    arrival.publish()
    return arrival, lambda _spans: None


@contextmanager
def _remote(
    connect: Callable[[], Connection], ask: TensorsAsk, title: str, *, is_whole: bool
) -> Iterator[tuple[Arrival, Want]]:
    """Follow what the daemon fetches, and hold it inside the block."""
    from ckptd.link import calls
    from ckptd.reading.stream import Stream
    from ckptd_proto.v1 import blobs_pb2

    opening = blobs_pb2.ReadOpen(
        ref=ask.fetch.ref,
        sha256=ask.fetch.sha256 or "",
        offline=ask.fetch.offline or fetching.is_offline(),
        hold=ask.fetch.hold,
        whole=is_whole,
        transport=ask.verify == "transport",
    )
    arrival = Arrival(title)
    try:
        with Stream(connect, opening, arrival, ask.fetch.on_progress) as stream:
            yield arrival, stream.want
    finally:
        with calls.untracked():
            fetching.release(connect, ask.fetch)
