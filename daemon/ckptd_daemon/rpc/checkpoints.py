"""`Checkpoints`: what is committed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ckptd_daemon.rpc.status import Context
from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.saver import Saver
from ckptd_daemon.sessions import Sessions
from ckptd_proto.v1 import checkpoints_pb2 as pb
from ckptd_proto.v1 import checkpoints_pb2_grpc


class CheckpointsService(checkpoints_pb2_grpc.CheckpointsServicer):
    """Translates what `Saver` finds."""

    def __init__(self, saver: Saver, sessions: Sessions) -> None:
        self._saver = saver
        self._sessions = sessions

    async def List(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> AsyncIterator[pb.Checkpoint]:
        """Tell the committed checkpoints by rising step."""
        session = self._sessions.of(context.peer())
        for checkpoint in await self._saver.checkpoints(
            request.root, request.experiment, request.run, session
        ):
            yield checkpoint_message(checkpoint)


def checkpoint_message(checkpoint: Checkpoint) -> pb.Checkpoint:
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
    )
