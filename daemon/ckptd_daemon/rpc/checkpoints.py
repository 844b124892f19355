"""`Checkpoints`: what is committed, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import groupby

from ckptd_daemon.rpc.status import Context
from ckptd_daemon.save.attempts import Checkpoint, Flaw
from ckptd_daemon.save.commit.damage import Damage
from ckptd_daemon.save.keeping import pins, standing
from ckptd_daemon.save.keeping.keeper import Keeper
from ckptd_daemon.save.keeping.retention import Retention
from ckptd_daemon.save.places import Place, in_thread
from ckptd_daemon.save.saver import Saver
from ckptd_daemon.sessions import Session, Sessions
from ckptd_proto.v1 import checkpoints_pb2 as pb
from ckptd_proto.v1 import checkpoints_pb2_grpc


class CheckpointsService(checkpoints_pb2_grpc.CheckpointsServicer):
    """Translates what `Saver` and `Keeper` say."""

    def __init__(self, saver: Saver, keeper: Keeper, sessions: Sessions) -> None:
        self._saver = saver
        self._keeper = keeper
        self._sessions = sessions

    async def List(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> AsyncIterator[pb.Checkpoint]:
        """Tell the committed checkpoints by rising step."""
        found = await self._saver.outcomes.checkpoints(
            request.root, request.experiment, request.run, self._session(context)
        )
        for place, steps in groupby(found, key=lambda one: one.place):
            of_run = list(steps)
            stand = await in_thread(standing.of, place, of_run, may_leave=True)
            pinned = await in_thread(pins.pinned, place, may_leave=True)
            for one in of_run:
                yield checkpoint_message(
                    one,
                    pinned=one.step in pinned,
                    latest=one is stand.latest,
                    damage=stand.damaged.get(one.step),
                )

    async def Retain(self, request: pb.RetainRequest, context: Context) -> pb.RetainReply:
        """Have rules apply to a run."""
        place = Place.named(request.root, request.experiment, request.run)
        rules = _retention(request.retention)
        await self._keeper.set_rules(place, rules, self._session(context))
        return pb.RetainReply()

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinReply:
        """Pin a step, or unpin it."""
        place = Place.named(request.root, request.experiment, request.run)
        changed = await self._keeper.pin(
            place, request.step, self._session(context), pinned=request.pinned
        )
        return pb.PinReply(changed=changed)

    async def Remove(
        self, request: pb.RemoveCheckpointRequest, context: Context
    ) -> pb.RemoveCheckpointReply:
        """Remove a step."""
        place = Place.named(request.root, request.experiment, request.run)
        removed = await self._keeper.remove(
            place,
            request.step,
            self._session(context),
            dry_run=request.dry_run,
            force=request.force,
        )
        return pb.RemoveCheckpointReply(removed=checkpoint_message(removed))

    async def Suspect(self, request: pb.SuspectRequest, context: Context) -> pb.SuspectReply:
        """Look at what a client found corrupt, and note it if it is."""
        found = await self._keeper.suspect(
            Place.named(request.root, request.experiment, request.run),
            request.step,
            request.uuid,
            request.file,
            request.chunk if request.HasField("chunk") else None,
            self._session(context),
        )
        return pb.SuspectReply(corruption=_corruption(found))

    async def Collect(
        self, request: pb.CollectRequest, context: Context
    ) -> AsyncIterator[pb.Ruling]:
        """Apply rules below a root, and tell what becomes of each checkpoint."""
        rules = _retention(request.retention) if request.HasField("retention") else None
        async for ruling in self._keeper.collect(
            request.root,
            request.experiment,
            request.run,
            self._session(context),
            rules=rules,
            dry_run=request.dry_run,
        ):
            yield pb.Ruling(
                checkpoint=checkpoint_message(ruling.checkpoint), goes=ruling.goes, why=ruling.why
            )

    def _session(self, context: Context) -> Session:
        return self._sessions.of(context.peer())


def checkpoint_message(
    checkpoint: Checkpoint,
    *,
    pinned: bool = False,
    latest: bool = False,
    damage: Damage | None = None,
) -> pb.Checkpoint:
    """Return the checkpoint as it travels."""
    place = checkpoint.place
    return pb.Checkpoint(
        root=str(place.root),
        experiment=place.experiment,
        run=place.run,
        step=checkpoint.step,
        uuid=checkpoint.attempt,
        path=str(place.step(checkpoint.step)),
        size_bytes=checkpoint.size_bytes,
        metrics=checkpoint.metrics,
        committed_at=checkpoint.committed_at,
        pinned=pinned,
        latest=latest,
        corruption=_corruption(damage, checkpoint.flaw),
    )


def _corruption(found: Damage | None, flaw: Flaw | None = None) -> pb.Corruption | None:
    if found is None:
        return None
    return pb.Corruption(
        file=found.file,
        chunk=found.chunk,
        what=found.what,
        found_at=found.found_at,
        newer=flaw is not None and flaw.is_newer,
    )


def _retention(message: pb.Retention) -> Retention:
    return Retention(
        latest=message.latest,
        best=message.best,
        monitor=message.monitor,
        mode="max" if message.maximize else "min",
        every=message.every,
        ttl_s=message.ttl_s or None,
    )
