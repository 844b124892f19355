"""`Blobs.Read`: its messages as the values that `fetch/reading` speaks, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc.aio
from google.protobuf.message import DecodeError

from ckptd_daemon.fetch.call import Request
from ckptd_daemon.fetch.reading import Opened, Span, Terms
from ckptd_daemon.sources.directories import is_directory
from ckptd_proto import errors, refs
from ckptd_proto.urls import display
from ckptd_proto.v1 import blobs_pb2 as pb

SPANS_PER_MESSAGE = 4096


async def asked(requests: AsyncIterator[pb.ReadRequest]) -> tuple[Request, Terms]:
    """Take in the first request; raises `InvalidArgument`."""
    try:
        first = await anext(requests, pb.ReadRequest())
    except DecodeError as error:
        raise _unreadable() from error
    if not first.HasField("open"):
        raise errors.InvalidArgument("the first request says what to open; say that")
    ask = first.open
    url = refs.parse(ask.ref).url
    if url is None:
        raise errors.InvalidArgument(f"{ask.ref} is a local path; open it yourself")
    if is_directory(url):
        raise errors.InvalidArgument(f"{display(url)} is a directory; name one file of it")
    request = Request(ask.ref, ask.sha256 or None, offline=ask.offline, hold=ask.hold)
    return request, Terms(is_whole=ask.whole, is_early=ask.transport)


async def wants(requests: AsyncIterator[pb.ReadRequest]) -> AsyncIterator[Span]:
    """Return what is wanted, as the other requests say it; ends with the call.

    Raises `InvalidArgument`.
    """
    try:
        async for request in requests:
            for span in request.want.spans:
                yield span.start, span.end
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        return  # the call ended while we waited for more
    except DecodeError as error:
        raise _unreadable() from error


def _unreadable() -> errors.InvalidArgument:
    return errors.InvalidArgument("a request of this call is no ReadRequest; send those only")


def opened_event(opened: Opened, token: str) -> pb.ReadEvent:
    """Return the event that hands the file over."""
    message = pb.ReadOpened(
        key=opened.key,
        size_bytes=opened.size_bytes,
        token=token,
        unverified=opened.is_unverified,
    )
    return pb.ReadEvent(opened=message)


def landed_events(spans: list[Span]) -> Iterator[pb.ReadEvent]:
    """Return the events that tell of *spans*, none of them too long."""
    for at in range(0, len(spans), SPANS_PER_MESSAGE):
        part = spans[at : at + SPANS_PER_MESSAGE]
        landed = pb.ReadLanded(spans=[pb.Span(start=start, end=end) for start, end in part])
        yield pb.ReadEvent(landed=landed)
