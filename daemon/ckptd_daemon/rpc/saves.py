"""`Saves`: from staged images to a committed checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

from ckptd_daemon.rpc.checkpoints import checkpoint_message
from ckptd_daemon.rpc.status import Context, patience_s
from ckptd_daemon.save.arena.lending import Lent
from ckptd_daemon.save.arena.offers import SlotOffer
from ckptd_daemon.save.attempts import Checkpoint, Image, Skipped, State, WhenFull
from ckptd_daemon.save.gather import PAYLOADS_BYTES_MAX
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.saver import Saver
from ckptd_daemon.save.track import Progress
from ckptd_daemon.sessions import Session, Sessions
from ckptd_proto import errors
from ckptd_proto.v1 import saves_pb2 as pb
from ckptd_proto.v1 import saves_pb2_grpc

PART_BYTES: Final = 512 << 10
_STATES: Final = {
    State.OPEN: pb.ATTEMPT_STATE_OPEN,
    State.STAGED: pb.ATTEMPT_STATE_STAGED,
    State.LOCAL: pb.ATTEMPT_STATE_LOCAL,
    State.DURABLE: pb.ATTEMPT_STATE_DURABLE,
    State.COMMITTED: pb.ATTEMPT_STATE_COMMITTED,
    State.ABORTED: pb.ATTEMPT_STATE_ABORTED,
}
_WHEN_FULL: Final = {
    pb.WHEN_FULL_UNSPECIFIED: WhenFull.WAIT,
    pb.WHEN_FULL_WAIT: WhenFull.WAIT,
    pb.WHEN_FULL_SKIP: WhenFull.SKIP,
    pb.WHEN_FULL_SUPERSEDE: WhenFull.SUPERSEDE,
}


class SavesService(saves_pb2_grpc.SavesServicer):
    """Translates; the parts of `Saver` think."""

    def __init__(self, saver: Saver, sessions: Sessions) -> None:
        self._saver = saver
        self._sessions = sessions

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        """Make the calling process one rank of a job."""
        job, daemon = await self._saver.enrolment.join(
            Place.named(request.root, request.experiment, request.run),
            request.incarnation,
            rank=request.rank,
            world_size=request.world_size,
            root_device=request.root_device,
            root_inode=request.root_inode,
            read_only=request.read_only,
            within_s=patience_s(context),
            session=self._session(context),
        )
        return pb.JoinReply(job=job, daemon=daemon)

    async def Gather(
        self, request_iterator: AsyncIterator[pb.GatherPart], context: Context
    ) -> AsyncIterator[pb.GatherPart]:
        """All-gather among the ranks of a job."""
        first: pb.GatherPart | None = None
        payload = bytearray()
        async for part in request_iterator:
            first = first or part
            payload += part.data
            if len(part.data) > PART_BYTES or len(payload) > PAYLOADS_BYTES_MAX:
                text = f"a part has {len(part.data)} bytes of {len(payload)}; send less"
                raise errors.InvalidArgument(text)
        if first is None:
            raise errors.InvalidArgument("the call had no part; send one, even if it is empty")
        session, data = self._session(context), bytes(payload)
        if first.finished:
            await self._saver.enrolment.stand_by(
                first.job, first.rank, first.round, data, session=session
            )
            return
        payloads = await self._saver.enrolment.gather(
            first.job, first.rank, first.round, data, timeout_s=first.timeout_s, session=session
        )
        for rank, data in enumerate(payloads):
            for start in range(0, max(1, len(data)), PART_BYTES):
                yield pb.GatherPart(rank=rank, data=data[start : start + PART_BYTES])

    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenReply:
        """Open the rank's part of an attempt."""
        opened = await self._saver.opening.open(
            request.job,
            request.rank,
            sequence=request.sequence,
            step=request.step,
            plan_hash=request.plan_hash,
            replaces=request.on_existing == pb.ON_EXISTING_REPLACE,
            images_bytes=request.images_bytes if request.HasField("images_bytes") else None,
            when_full=_WHEN_FULL[request.when_full],
            daemons=(request.daemons, request.daemon_of),
            supersedes=request.supersedes if request.HasField("supersedes") else None,
            within_s=patience_s(context),
            session=self._session(context),
        )
        if isinstance(opened, Checkpoint):
            return pb.OpenReply(committed=checkpoint_message(opened))
        if isinstance(opened, Skipped):
            return pb.OpenReply(skipped=opened.reason)
        return pb.OpenReply(attempt=opened.id)

    async def Room(self, request: pb.RoomRequest, context: Context) -> pb.RoomReply:
        """Say what the job's saves take of the memory here."""
        room = self._saver.opening.room(request.job, request.rank, session=self._session(context))
        return pb.RoomReply(
            full=room.is_full, waiting=room.waiting, writing=room.is_writing, held=room.held
        )

    async def Prepare(self, request: pb.PrepareRequest, context: Context) -> pb.PrepareReply:
        """Allocate the rank's slots before its first save."""
        slots = await self._saver.staging.prepare(
            request.job, request.rank, request.size_bytes, session=self._session(context)
        )
        return pb.PrepareReply(slots=map(_slot, slots))

    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveReply:
        """Return a slot for the rank's images, once one is free."""
        slot, offsets = await self._saver.staging.reserve(
            request.attempt,
            request.rank,
            _images(request.images),
            mapped=request.mapped,
            timeout_s=request.timeout_s,
            session=self._session(context),
        )
        return pb.ReserveReply(slot=_slot(slot), offsets=offsets)

    async def Seal(self, request: pb.SealRequest, context: Context) -> pb.SealReply:
        """Note that the rank's images are complete."""
        self._saver.staging.seal(
            request.attempt,
            request.rank,
            plan=_images(request.plan) if request.rank == 0 else None,
            metrics=dict(request.metrics),
            session=self._session(context),
        )
        return pb.SealReply()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Attempt]:
        """Tell the attempt's states until the last."""
        place = Place.named(request.root, request.experiment, request.run)
        session = self._session(context)
        async for progress in self._saver.outcomes.watch(
            request.attempt, place, request.step, session
        ):
            yield attempt_message(progress)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortReply:
        """Give up an attempt that is not staged yet."""
        session = self._session(context)
        self._saver.staging.abort(request.attempt, request.rank, request.reason, session)
        return pb.AbortReply()

    async def Lend(self, request: pb.LendRequest, context: Context) -> AsyncIterator[pb.LendReply]:
        """Lend what of a checkpoint still lies in the arena, while the call lasts."""
        lending = self._saver.lending
        with lending.lend(request.attempt, self._session(context)) as lent:
            yield pb.LendReply(images=[image for each in lent for image in _lent_images(each)])
            if lent:
                await lending.wait_ended()

    async def Quarantine(
        self, request: pb.QuarantineRequest, context: Context
    ) -> pb.QuarantineReply:
        """Lend an image no more."""
        self._saver.lending.quarantine(
            request.attempt, request.image, request.reason, self._session(context)
        )
        return pb.QuarantineReply()

    async def Roll(self, request: pb.RollRequest, context: Context) -> pb.RollReply:
        """Name the ranks of the job that have died."""
        lost = self._saver.enrolment.lost_ranks(request.job)
        return pb.RollReply(lost=[pb.LostRank(rank=rank, pid=pid) for rank, pid in lost.items()])

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        """Let a rank go."""
        self._saver.enrolment.leave(request.job, request.rank, self._session(context))
        return pb.LeaveReply()

    def _session(self, context: Context) -> Session:
        return self._sessions.of(context.peer())


def attempt_message(progress: Progress) -> pb.Attempt:
    """Return the attempt as it travels."""
    attempt = progress.attempt
    failure, checkpoint, phases = attempt.failure, attempt.checkpoint, progress.phases
    return pb.Attempt(
        id=attempt.id,
        step=attempt.step,
        state=_STATES[attempt.shown_state],
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        checkpoint=None if checkpoint is None else checkpoint_message(checkpoint),
        error="" if failure is None else type(failure).__name__,
        reason="" if failure is None else str(failure),
        waited_s=None if phases is None else phases.waited_s,
        persist_s=None if phases is None else phases.persist_s,
        commit_s=None if phases is None else phases.commit_s,
        superseded_by=attempt.superseded_by,
        note=progress.note,
    )


def _images(images: Iterable[pb.Image]) -> list[Image]:
    return [Image(image.name, image.size_bytes) for image in images]


def _lent_images(lent: Lent) -> list[pb.LentImage]:
    return [
        pb.LentImage(image=_image(laid.image), slot=_slot(lent.slot), offset=laid.offset)
        for laid in lent.laid
    ]


def _image(image: Image) -> pb.Image:
    return pb.Image(name=image.name, size_bytes=image.size_bytes)


def _slot(offer: SlotOffer) -> pb.Slot:
    return pb.Slot(id=offer.id, size_bytes=offer.size_bytes, token=offer.token)
