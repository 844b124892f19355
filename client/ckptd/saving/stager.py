"""A rank's way from an agreed plan to memory that the daemon takes it from."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import torch

from ckptd.link.connection import Connection, Stubs
from ckptd.saving.catalog import checkpoint_of
from ckptd.saving.exchange import GRACE_S, LEAD
from ckptd.saving.fullness import Room
from ckptd.saving.membership import Membership
from ckptd.saving.planning import Agreed
from ckptd.saving.save import Save
from ckptd.saving.sealing import Sealing
from ckptd.saving.slots import Slots
from ckptd.tensors import stage, streams
from ckptd.tensors.copying import Copying
from ckptd.tensors.local import Local
from ckptd.tensors.streams import Stream
from ckptd_proto.v1 import saves_pb2

ON_EXISTING: Final = {
    "error": saves_pb2.ON_EXISTING_ERROR,
    "replace": saves_pb2.ON_EXISTING_REPLACE,
}
WHEN_FULL: Final = {
    "wait": saves_pb2.WHEN_FULL_WAIT,
    "skip": saves_pb2.WHEN_FULL_SKIP,
    "supersede": saves_pb2.WHEN_FULL_SUPERSEDE,
}


class Stager:
    """Opens attempts, copies this rank's part of each, and seals it."""

    def __init__(
        self,
        connection: Connection,
        member: Membership,
        timeout_s: float,
        when_full: str,
        *,
        overlap: bool = True,
    ) -> None:
        """Wait for room to stage *timeout_s* at most, unless *when_full* says otherwise.

        A daemon that stands still is waited for a little longer: it has the same deadline.

        With *overlap* what optimizers own on a device is copied beside the training.
        """
        self._connection = connection
        self._member = member
        self._timeout_s = timeout_s
        self._deadline_s = timeout_s + GRACE_S
        self._when_full = when_full
        self._slots = Slots(connection)
        self._overlap = overlap
        self._sealing = Sealing()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="ckptd-prepare")
        self._preparing: Future[None] | None = None

    def prepare(self, agreed: Agreed, local: Local) -> None:
        """Have memory allocated and mapped for saving what is *agreed*, in the background.

        Raises what went wrong with an earlier call.
        """
        self._wait_prepared()
        size_bytes = sum(agreed.images(self._member.rank).values())
        self._preparing = self._background.submit(self._prepare, size_bytes, _stream_of(local))

    def save(
        self,
        agreed: Agreed,
        local: Local,
        *,
        sequence: int,
        step: int,
        metrics: Mapping[str, float],
        on_existing: str,
        supersedes: int | None = None,
    ) -> Save:
        """Return the save, whose part of this rank has been copied; raises if it could not be.

        If there are several daemons, *supersedes* is the sequence of the save that gives way. What
        optimizers own on a device may still be on its way: see `wait_sealed`.
        """
        save = Save(step)
        opened = self._open(
            agreed, sequence=sequence, step=step, on_existing=on_existing, supersedes=supersedes
        )
        if opened.HasField("committed"):
            save.was_committed = True
            save.succeed(checkpoint_of(opened.committed))
            return save
        if opened.skipped:
            save.skip(opened.skipped)
            return save
        abort = partial(self._member.abort, opened.attempt)  # tells the others

        def seal() -> None:
            self._seal(opened.attempt, agreed, metrics)
            save.watch(self._connection, self._member.watch_request(opened.attempt, step))

        try:
            self._wait_prepared()
            touched_bytes = self._slots.touched_bytes
            may_overlap = self._overlap and not self._sealing.is_torn
            with Copying(local.optimizers if may_overlap else ()) as copying:
                self._stage(opened.attempt, agreed, local, copying)
                save.touched_bytes = self._slots.touched_bytes - touched_bytes
                if copying.is_complete:
                    seal()
                else:
                    self._sealing.begin(save, copying, seal=seal, abort=abort)
        except BaseException as error:
            abort(error)
            self._slots.drop_lost()
            raise
        return save

    def wait_sealed(self) -> None:
        """Wait until what was on its way when `save` returned is out of this rank's hands."""
        self._sealing.wait()

    def close(self) -> None:
        """Give the mapped memory back."""
        self._sealing.close()
        self._background.shutdown()
        self._slots.close()

    def room(self) -> Room:
        """Return what the job's saves take of the memory of this rank's daemon.

        The other ranks wait meanwhile: it may take `LEAD` of the time that they do.
        """
        request = saves_pb2.RoomRequest(job=self._member.job, rank=self._member.rank)
        deadline_s = self._timeout_s * LEAD
        reply = self._member.call(lambda stubs: stubs.saves.Room(request, timeout=deadline_s))
        return Room(
            full=reply.full,
            waiting=list(reply.waiting),
            writing=reply.writing,
            held=list(reply.held),
        )

    def _open(
        self,
        agreed: Agreed,
        *,
        sequence: int,
        step: int,
        on_existing: str,
        supersedes: int | None,
    ) -> saves_pb2.OpenReply:
        request = saves_pb2.OpenRequest(
            job=self._member.job,
            rank=self._member.rank,
            sequence=sequence,
            step=step,
            plan_hash=agreed.hash,
            on_existing=ON_EXISTING[on_existing],
        )
        ranks = self._member.ranks_beside
        if self._member.rank == ranks[0]:
            request.images_bytes = sum(sum(agreed.images(rank).values()) for rank in ranks)
        if daemons := self._member.daemons:
            position = {name: at for at, name in enumerate(dict.fromkeys(daemons))}
            request.daemons.extend(position)
            request.daemon_of.extend(position[name] for name in daemons)
            if supersedes is not None:
                request.supersedes = supersedes
        else:
            request.when_full = WHEN_FULL[self._when_full]
        reply: saves_pb2.OpenReply = self._member.call(
            lambda stubs: stubs.saves.Open(request, timeout=self._deadline_s)
        )
        return reply

    def _stage(self, attempt: str, agreed: Agreed, local: Local, copying: Copying) -> None:
        """Copy, but for what *copying* goes on with."""
        sizes = agreed.images(self._member.rank)
        reserved = self._reserve(attempt, sizes)
        memory = self._slots.memory(reserved.slot)
        if (stream := _stream_of(local)) is not None:
            self._slots.pin(reserved.slot, stream)
        with stage.of_one_moment(agreed.mine, local.sources):
            for (name, size_bytes), start in zip(sizes.items(), reserved.offsets, strict=True):
                image = memory[start : start + size_bytes]
                if (document := agreed.documents.get(name)) is not None:
                    image[:] = document
                else:
                    mine = [placed for placed in agreed.mine if placed.file == name]
                    stage.fill(image, mine, local.sources, copying)
            copying.start()

    def _seal(self, attempt: str, agreed: Agreed, metrics: Mapping[str, float]) -> None:
        seal = saves_pb2.SealRequest(attempt=attempt, rank=self._member.rank)
        if self._member.rank == 0:
            seal.plan.extend(_images(agreed.all_images()))
            seal.metrics.update(metrics)
        self._connection.call(lambda stubs: stubs.saves.Seal(seal, timeout=self._deadline_s))

    def _reserve(self, attempt: str, sizes: Mapping[str, int]) -> saves_pb2.ReserveReply:
        def reserve(stubs: Stubs) -> saves_pb2.ReserveReply:
            self._slots.drop_lost()  # each time: what it has mapped is of one life of the daemon
            request = saves_pb2.ReserveRequest(
                attempt=attempt,
                rank=self._member.rank,
                images=_images(sizes),
                timeout_s=self._timeout_s,
                mapped=self._slots.mapped,
            )
            return stubs.saves.Reserve(request, timeout=self._deadline_s)

        return self._connection.call(reserve)

    def _prepare(self, size_bytes: int, stream: Stream | None) -> None:
        self._slots.drop_lost()
        request = saves_pb2.PrepareRequest(
            job=self._member.job, rank=self._member.rank, size_bytes=size_bytes
        )
        reply = self._member.call(
            lambda stubs: stubs.saves.Prepare(request, timeout=self._deadline_s)
        )
        for slot in reply.slots:
            self._slots.memory(slot)
            if stream is not None:
                self._slots.pin(slot, stream)

    def _wait_prepared(self) -> None:
        """Raise what went wrong with `prepare`, once."""
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.result()


def _stream_of(local: Local) -> Stream | None:
    """Return the stream of a device that holds some of *local*; None if none does."""
    for source in local.sources.values():
        if isinstance(source, torch.Tensor) and (stream := streams.of(source.device)) is not None:
            return stream
    return None


def _images(sizes: Mapping[str, int]) -> list[saves_pb2.Image]:
    return [saves_pb2.Image(name=name, size_bytes=size) for name, size in sizes.items()]
