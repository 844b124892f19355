"""This process as one rank of a job, in the eyes of the daemon."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from ckptd.link.connection import Connection, Stubs
from ckptd.saving import incarnation
from ckptd.saving.exchange import Exchange, ProcessGroup, ThroughDaemon, settle
from ckptd_proto import errors
from ckptd_proto.v1 import saves_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_S = 30.0
_ABORT_S = 5.0
_LEAVE_S = 5.0
_ROLL_TRIES = 5
_ROLL_PAUSE_S = 0.1
_generations = count()  # every rank makes its Checkpointers in the same order


class Membership:
    """A rank that has joined; joins again whenever the daemon has restarted."""

    def __init__(self, connection: Connection, request: saves_pb2.JoinRequest) -> None:
        self.job = ""
        self.daemons: list[str] = []
        """What the daemon of each rank is called, if there are several."""
        self._connection = connection
        self._request = request
        self._daemon = ""
        self._has_left = False
        self._is_unknown = False  # the daemon of now would not let us join again

    @classmethod
    def join(
        cls,
        connection: Connection,
        exchange: Exchange,
        root: Path,
        experiment: str,
        run: str,
        *,
        read_only: bool = False,
    ) -> Self:
        """Join the job; raises, on every rank, if one of them cannot or names another place."""
        request = saves_pb2.JoinRequest(
            root=str(root),
            experiment=experiment,
            run=run,
            rank=exchange.rank,
            world_size=exchange.world_size,
            read_only=read_only,
        )
        member = cls(connection, request)

        def enter() -> dict[str, Any]:
            member._enter(root)
            return {"daemon": member._daemon}

        if isinstance(exchange, ThroughDaemon):
            generation = next(_generations)
            request.incarnation = f"{incarnation.of_launch()}-{generation}"
            member._enter(root)
            exchange.meet_in(member, generation)
            _check_one_place(settle(exchange, member._introduction))
            return member
        heard = settle(exchange, member._introduction)
        _check_one_place(heard)
        request.incarnation = heard[0]["incarnation"]
        daemons = [str(each["daemon"]) for each in settle(exchange, enter)]
        member.daemons = daemons if len(set(daemons)) > 1 else []
        if isinstance(exchange, ProcessGroup):
            exchange.lost = member.lost
        return member

    def call(self, fn: Callable[[Stubs], T]) -> T:
        """Return what *fn* returns, called as a rank that the daemon knows.

        Raises why a restarted daemon does not let us join again, if so.
        """

        def call(stubs: Stubs) -> T:
            if self._is_unknown:
                self._join(stubs)
            return fn(stubs)

        return self._connection.call(call)

    @property
    def ranks_beside(self) -> list[int]:
        """The ranks that have the same daemon as this one, and this one, rising."""
        world = range(self._request.world_size)
        daemons = self.daemons
        return [rank for rank in world if not daemons or daemons[rank] == daemons[self.rank]]

    @property
    def rank(self) -> int:
        """Which of the job's ranks this process is."""
        return self._request.rank

    @property
    def place(self) -> Path:
        """Where the job's checkpoints appear."""
        return Path(self._request.root, self._request.experiment, self._request.run)

    def abort(self, attempt: str, error: BaseException) -> None:
        """Give *attempt* up, so that the other ranks learn why."""
        reason = str(error) or type(error).__name__
        request = saves_pb2.AbortRequest(attempt=attempt, rank=self._request.rank, reason=reason)
        try:
            self._connection.call(
                lambda stubs: stubs.saves.Abort(request, timeout=_ABORT_S), timeout_s=_ABORT_S
            )
        except errors.CkptdError as failure:
            error.add_note(f"the daemon could not be told: {failure}")

    def lost(self) -> str:
        """Say which ranks have died; empty if none has, or nobody knows.

        Asks for a moment: a dead process's connections end before the process is gone.
        """
        request = saves_pb2.RollRequest(job=self.job)
        for attempt in range(_ROLL_TRIES):
            time.sleep(_ROLL_PAUSE_S if attempt else 0)
            try:
                roll = self._connection.call(
                    lambda stubs: stubs.saves.Roll(request, timeout=_ABORT_S), timeout_s=_ABORT_S
                )
            except errors.CkptdError:
                logger.warning("the daemon could not say which ranks have died", exc_info=True)
                return ""
            if roll.lost:
                return ", ".join(f"rank {one.rank} (pid {one.pid})" for one in roll.lost) + " died"
        return ""

    def leave(self) -> None:
        """Leave the job; what is committed may stay in memory. A daemon that is gone has forgotten us."""
        self._has_left = True
        request = saves_pb2.LeaveRequest(job=self.job, rank=self._request.rank)
        try:
            self._connection.call(
                lambda stubs: stubs.saves.Leave(request, timeout=_LEAVE_S), timeout_s=_LEAVE_S
            )
        except (errors.Unavailable, errors.DeadlineExceeded):
            logger.debug("the daemon is gone; nothing is left to leave", exc_info=True)

    def watch_request(self, attempt: str, step: int) -> saves_pb2.WatchRequest:
        """Return the question for the fate of *attempt*."""
        joined = self._request
        return saves_pb2.WatchRequest(
            attempt=attempt,
            root=joined.root,
            experiment=joined.experiment,
            run=joined.run,
            step=step,
        )

    def _enter(self, root: Path) -> None:
        self._look(root)
        self._connection.call(self._join)
        self._look(root)  # it may just have been made; a restarted daemon must see the same
        self._connection.on_connect(self._enter_again)

    def _look(self, root: Path) -> None:
        if root.exists():
            stat = root.stat()
            self._request.root_device, self._request.root_inode = stat.st_dev, stat.st_ino

    def _join(self, stubs: Stubs) -> None:
        joined = stubs.saves.Join(self._request, timeout=_JOIN_S)
        self.job, self._daemon = joined.job, joined.daemon
        self._is_unknown = False

    def _enter_again(self, stubs: Stubs) -> None:
        if self._has_left:
            return
        try:
            self._join(stubs)
        except grpc.RpcError:  # the next call tries again, and tells
            self._is_unknown = True
            logger.debug("could not join the job again", exc_info=True)

    def _introduction(self) -> dict[str, Any]:
        return {"place": str(self.place), "incarnation": uuid.uuid4().hex}


def _check_one_place(heard: list[dict[str, Any]]) -> None:
    for rank, said in enumerate(heard):
        if said["place"] != heard[0]["place"]:
            text = (
                f"rank {rank} saves into {said['place']} and rank 0 into {heard[0]['place']}: give"
                " every rank the same root, experiment and run"
            )
            raise errors.InvalidArgument(text)
