"""The Blobs service: translate, call, translate back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Any

import anyio
from google.protobuf.message import DecodeError

from ckptd_daemon.fetch.batch import Batch
from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.fetch.fetcher import Fetcher
from ckptd_daemon.rpc import reading as translated
from ckptd_daemon.rpc.status import Context
from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.store.blob import Blob, Verification
from ckptd_daemon.store.leases import lease_id
from ckptd_daemon.store.scrub import Finding
from ckptd_daemon.transfer.progress import Phase, Progress
from ckptd_proto import errors
from ckptd_proto.v1 import blobs_pb2, blobs_pb2_grpc

logger = logging.getLogger(__name__)

FIRST_S = 0.02
"""What is there already is handed over sooner, without a word of progress."""
PROGRESS_S = 0.25
PROGRESS_MAX_PER_S = 200  # of the whole daemon
KEEP_MAX_S = 366 * 86400.0

_VERIFICATION = {
    Verification.SHA256: blobs_pb2.VERIFICATION_SHA256,
    Verification.STORE_CHECKSUM: blobs_pb2.VERIFICATION_STORE_CHECKSUM,
    Verification.TRANSPORT: blobs_pb2.VERIFICATION_TRANSPORT,
}
_PHASE = {
    Phase.RESOLVING: blobs_pb2.FETCH_PHASE_RESOLVING,
    Phase.WAITING: blobs_pb2.FETCH_PHASE_WAITING,
    Phase.DOWNLOADING: blobs_pb2.FETCH_PHASE_DOWNLOADING,
    Phase.VERIFYING: blobs_pb2.FETCH_PHASE_VERIFYING,
    Phase.RETRYING: blobs_pb2.FETCH_PHASE_RETRYING,
}


class BlobsService(blobs_pb2_grpc.BlobsServicer):
    """Fetching, and what the cache holds."""

    def __init__(
        self, fetcher: Fetcher, sessions: Sessions, offer: Callable[[int, int], str]
    ) -> None:
        self._fetcher = fetcher
        self._sessions = sessions
        self._offer = offer  # a descriptor to a user, against the token that it returns
        self._listeners = 0

    async def Fetch(
        self, request: blobs_pb2.FetchRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.FetchEvent]:
        """Tell how far it is, newest reading only, then hand the file over."""
        holder = self._sessions.of(context.peer()).process
        with self._fetcher.calling(_request(request), holder) as call:
            context.add_done_callback(_leaving(call))
            if request.quiet:
                await call.wait_ended()
            else:
                async for progress in self._readings(call):
                    yield blobs_pb2.FetchEvent(progress=_progress(progress))
            yield blobs_pb2.FetchEvent(blob=_handed(call.result()))

    async def _readings(self, call: Call) -> AsyncIterator[Progress]:
        """Yield what is news of how far it is, until it has ended."""
        self._listeners += 1
        try:
            told = None
            while not await call.wait(interval_s(self._listeners, is_first=told is None)):
                if (progress := call.progress()) != told:
                    yield progress
                told = progress
        finally:
            self._listeners -= 1

    async def Find(self, request: blobs_pb2.FetchRequest, context: Context) -> blobs_pb2.FindReply:
        """Hand it over if it is here."""
        return await self._found(request, self._sessions.of(context.peer()).process)

    async def answer(self, question: bytes, holder: Process) -> bytes:
        """Do as `Find`, but leave all that goes wrong to gRPC, which has the words for it."""
        try:
            request = blobs_pb2.FetchRequest.FromString(question)
            return (await self._found(request, holder)).SerializeToString()
        except (errors.CkptdError, DecodeError):
            return b""
        except Exception:
            logger.exception("bug in a short answer")
            return b""

    async def _found(self, request: blobs_pb2.FetchRequest, holder: Process) -> blobs_pb2.FindReply:
        handed = await self._fetcher.find(_request(request), holder)
        return blobs_pb2.FindReply(blob=None if handed is None else _handed(handed))

    async def FetchMany(
        self, request: blobs_pb2.FetchManyRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.FetchManyEvent]:
        """Hand each over when it is here; tell how far the rest is."""
        holder = self._sessions.of(context.peer()).process
        requests = [_request(each) for each in request.requests]
        with self._fetcher.calling_many(requests, holder) as batch:
            context.add_done_callback(_leaving(batch))
            self._listeners += 1
            try:
                told_at = -inf
                while not batch.is_done:  # what lands meanwhile is told together
                    pause_s = told_at + self._listeners / PROGRESS_MAX_PER_S - anyio.current_time()
                    await anyio.sleep(max(0.0, pause_s))
                    landed = await batch.news(interval_s(self._listeners))
                    fetched = [
                        blobs_pb2.Fetched(index=index, blob=_handed(handed))
                        for index, handed in landed
                    ]
                    yield blobs_pb2.FetchManyEvent(
                        fetched=fetched, progress=_progress(batch.progress())
                    )
                    told_at = anyio.current_time()
            except errors.CkptdError:
                for name in {each.call for each in requests if each.call}:
                    await self._fetcher.give_back(name, holder)
                raise
            finally:
                self._listeners -= 1

    async def Prefetch(
        self, request: blobs_pb2.FetchRequest, context: Context
    ) -> blobs_pb2.PrefetchReply:
        """Take it on."""
        holder = self._sessions.of(context.peer()).process
        await self._fetcher.prefetch(_request(request), holder.uid)
        return blobs_pb2.PrefetchReply()

    async def Withdraw(
        self, request: blobs_pb2.WithdrawRequest, context: Context
    ) -> blobs_pb2.WithdrawReply:
        """End it."""
        holder = self._sessions.of(context.peer()).process
        return blobs_pb2.WithdrawReply(prefetches=self._fetcher.withdraw(request.ref, holder.uid))

    async def Read(
        self, request_iterator: AsyncIterator[blobs_pb2.ReadRequest], context: Context
    ) -> AsyncIterator[blobs_pb2.ReadEvent]:
        """Tell what has landed and how far it is, then hand the file over."""
        holder = self._sessions.of(context.peer()).process
        request, terms = await translated.asked(request_iterator)
        wants = translated.wants(request_iterator)
        with self._fetcher.reading(request, holder, terms, wants) as reading:
            context.add_done_callback(_leaving(reading))
            self._listeners += 1
            try:
                told, told_at, has_ended = None, 0.0, False
                while not has_ended:
                    pause_s = interval_s(self._listeners)
                    has_ended = await reading.wait_news(pause_s if told else 0)
                    opened, landed = await reading.news()
                    if opened is not None:
                        token = self._offer(opened.fd, holder.uid)
                        yield translated.opened_event(opened, token)
                    for event in translated.landed_events(landed):
                        yield event
                    now, progress = anyio.current_time(), reading.progress()
                    if progress != told and now - told_at >= pause_s:
                        yield blobs_pb2.ReadEvent(progress=_progress(progress))
                        told, told_at = progress, now
                    await anyio.sleep(self._listeners / PROGRESS_MAX_PER_S)
            finally:
                self._listeners -= 1
            yield blobs_pb2.ReadEvent(blob=_handed(reading.result()))

    async def Release(
        self, request: blobs_pb2.ReleaseRequest, context: Context
    ) -> blobs_pb2.ReleaseReply:
        """Give a lease back."""
        holder = self._sessions.of(context.peer()).process
        if request.call:
            await self._fetcher.give_back(request.call, holder)
        else:
            lease = lease_id("", holder, request.hold) if request.hold else request.lease
            await self._fetcher.release(lease, holder)
        return blobs_pb2.ReleaseReply()

    async def List(
        self, request: blobs_pb2.ListBlobsRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.Blob]:
        """List the cache."""
        for blob, leases in self._fetcher.blobs():
            yield _blob(blob, leases)

    async def Verify(
        self, request: blobs_pb2.VerifyBlobsRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.BlobVerdict]:
        """Tell of each blob once it is read back."""
        holder = self._sessions.of(context.peer()).process
        async for finding in self._fetcher.verify(request.keys, holder):
            yield _verdict(finding)

    async def Remove(
        self, request: blobs_pb2.RemoveBlobRequest, context: Context
    ) -> blobs_pb2.RemoveBlobReply:
        """Drop one blob."""
        holder = self._sessions.of(context.peer()).process
        freed = await self._fetcher.remove(request.key, holder, is_forced=request.force)
        return blobs_pb2.RemoveBlobReply(freed_bytes=freed)


def interval_s(listeners: int, *, is_first: bool = False) -> float:
    """Return how long each of so many waits for its next reading; the first comes sooner."""
    return max(FIRST_S if is_first else PROGRESS_S, listeners / PROGRESS_MAX_PER_S)


def _leaving(call: Call | Batch) -> Any:
    """Return what gRPC calls when the caller is gone, though it may not close the generator."""
    return lambda _context: call.leave()


def _request(message: blobs_pb2.FetchRequest) -> Request:
    if not 0 <= message.keep_s <= KEEP_MAX_S:
        raise errors.InvalidArgument(f"keep_s is {message.keep_s}, not within 0..{KEEP_MAX_S:.0f}")
    return Request(
        message.ref,
        message.sha256 or None,
        message.keep_s,
        message.offline,
        message.hold,
        include=tuple(message.include),
        exclude=tuple(message.exclude),
        call=message.call,
    )


def _progress(progress: Progress) -> blobs_pb2.FetchProgress:
    return blobs_pb2.FetchProgress(
        phase=_PHASE[progress.phase],
        done_bytes=max(0, progress.done_bytes),
        total_bytes=progress.total_bytes,
        streams=progress.streams,
        reason=progress.reason,
        cause=progress.cause,
        rate_bytes_per_s=progress.rate_bytes_per_s,
        eta_s=progress.eta_s,
    )


def _handed(handed: Handed) -> blobs_pb2.Blob:
    message = blobs_pb2.Blob() if handed.blob is None else _blob(handed.blob, 0)
    message.path = str(handed.path)
    message.size_bytes = handed.size_bytes
    message.device = handed.device
    message.inode = handed.inode
    message.sha256 = handed.sha256 or ""
    message.lease = handed.lease
    if handed.blob is None and handed.sha256 is not None:
        message.verification = blobs_pb2.VERIFICATION_SHA256
    return message


def _verdict(finding: Finding) -> blobs_pb2.BlobVerdict:
    blob = finding.blob
    return blobs_pb2.BlobVerdict(
        key=blob.key,
        object=blob.title,
        size_bytes=blob.size_bytes,
        chunks=len(blob.crc32c),
        damaged_chunks=finding.damaged_chunks,
        quarantine=str(finding.quarantine or ""),
    )


def _blob(blob: Blob, leases: int) -> blobs_pb2.Blob:
    return blobs_pb2.Blob(
        key=blob.key,
        object=blob.title,
        version=blob.version,
        path=str(blob.path),
        size_bytes=blob.size_bytes,
        sha256=blob.sha256 or "",
        verification=_VERIFICATION[blob.verification],
        leases=leases,
        used_at=blob.used_at,
    )
