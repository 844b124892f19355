"""`Node`: the daemon itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ckptd_daemon import __version__
from ckptd_daemon.fetch.prefetches import Miss
from ckptd_daemon.fetch.statistics import FlightStatistics, Statistics
from ckptd_daemon.rpc.checkpoints import checkpoint_message
from ckptd_daemon.rpc.saves import attempt_message
from ckptd_daemon.rpc.status import Context
from ckptd_daemon.save.preemption import PreemptionStatistics
from ckptd_daemon.save.track import Progress as AttemptProgress
from ckptd_daemon.save.tracks import SaveStatistics
from ckptd_daemon.sessions import Sessions
from ckptd_daemon.settings import Settings
from ckptd_proto import errors
from ckptd_proto.v1 import node_pb2 as pb
from ckptd_proto.v1 import node_pb2_grpc


class Worker(Protocol):
    """A half of the daemon, as far as `Node` cares."""

    @property
    def is_idle(self) -> bool:
        """Nothing is staged, leased or in flight."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same while the daemon runs."""

    instance: str
    private: bool
    socket: Path
    state_dir: Path
    started: float
    """By the monotonic clock."""


class NodeService(node_pb2_grpc.NodeServicer):
    """Who the daemon is, what it does, and how to end it."""

    def __init__(
        self,
        identity: Identity,
        sessions: Sessions,
        workers: Sequence[Worker],
        *,
        stop: Callable[[], None],
        is_stopping: Callable[[], bool],
        saves: Callable[[], SaveStatistics],
        preemption: Callable[[], PreemptionStatistics | None],
        notice: Callable[[], tuple[str, float] | None],
        fetches: Callable[[], Statistics],
        settings: Settings,
    ) -> None:
        self._identity = identity
        self._sessions = sessions
        self._workers = workers
        self._stop = stop
        self._is_stopping = is_stopping
        self._saves = saves
        self._preemption = preemption
        self._notice = notice
        self._fetches = fetches
        self._settings = settings

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloReply:
        """Return the daemon's name and version, for the client to judge."""
        return self._hello()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """Return what everybody may know."""
        saves, fetches = self._saves(), self._fetches()
        return pb.StatusReply(
            daemon=self._hello(),
            socket=str(self._identity.socket),
            state_dir=str(self._identity.state_dir),
            uptime_s=time.monotonic() - self._identity.started,
            sessions=len(self._sessions),
            draining=self._is_stopping(),
            flights=map(_flight, fetches.flights),
            cache=pb.CacheStatus(
                blobs=fetches.blobs,
                used_bytes=fetches.used_bytes,
                quota_bytes=fetches.quota_bytes or 0,
                leases=fetches.leases,
                free_bytes=fetches.free_bytes,
            ),
            saves=map(_save, saves.attempts),
            # those of many runs would not fit a message
            newest=[checkpoint_message(replace(one, metrics={})) for one in saves.newest],
            unsaved=[
                pb.Run(root=str(place.root), experiment=place.experiment, run=place.run)
                for place in saves.unsaved
            ],
            misses=map(_miss, fetches.misses),
            preemption=_preemption(self._preemption()),
            arena=pb.ArenaStatus(
                used_bytes=saves.arena.used_bytes,
                budget_bytes=saves.arena.budget_bytes,
                slots=saves.arena.slots,
                idle_slots=saves.arena.idle_slots,
            ),
        )

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.StopReply:
        """Begin to stop; only the daemon's own user may."""
        self._require_owner(context, "stop it")
        if request.if_idle and not self._is_idle:
            text = "the daemon has work or leases; wait, or stop it regardless with `ckptd stop`"
            raise errors.FailedPrecondition(text)
        self._stop()
        return pb.StopReply()

    async def Notice(self, request: pb.NoticeRequest, context: Context) -> pb.NoticeReply:
        """Say whether this node is about to go away."""
        found = self._notice()
        return (
            pb.NoticeReply() if found is None else pb.NoticeReply(cause=found[0], left_s=found[1])
        )

    async def Settings(self, request: pb.SettingsRequest, context: Context) -> pb.SettingsReply:
        """Return the settings in force."""
        return self._said_settings()

    async def Configure(self, request: pb.ConfigureRequest, context: Context) -> pb.SettingsReply:
        """Change settings; only the daemon's own user may."""
        self._require_owner(context, "change its settings")
        self._settings.change(request.changes)
        return self._said_settings()

    def _require_owner(self, context: Context, what: str) -> None:
        if self._sessions.of(context.peer()).process.uid != os.geteuid():
            text = f"only user {os.geteuid()}, whose daemon this is, may {what}"
            raise errors.PermissionDenied(text)

    def _said_settings(self) -> pb.SettingsReply:
        return pb.SettingsReply(
            settings=[
                pb.Setting(name=each.name, value=each.value, changeable=each.is_changeable)
                for each in self._settings.all()
            ]
        )

    @property
    def _is_idle(self) -> bool:
        return all(worker.is_idle for worker in self._workers)

    def _hello(self) -> pb.HelloReply:
        return pb.HelloReply(
            daemon_version=__version__,
            instance=self._identity.instance,
            pid=os.getpid(),
            uid=os.geteuid(),
            private=self._identity.private,
            idle=self._is_idle,
        )


def _flight(flight: FlightStatistics) -> pb.Flight:
    progress = flight.progress
    return pb.Flight(
        object=flight.title,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        waiters=flight.waiters,
        streams=progress.streams,
        phase=progress.phase,
        reason=progress.reason,
        cause=progress.cause,
        rate_bytes_per_s=progress.rate_bytes_per_s,
        eta_s=progress.eta_s,
        key=flight.key,
    )


def _miss(miss: Miss) -> pb.Miss:
    return pb.Miss(
        id=miss.id, object=miss.title, error=miss.error, sentence=miss.sentence, at=miss.at
    )


def _preemption(found: PreemptionStatistics | None) -> pb.Preemption | None:
    if found is None:
        return None
    return pb.Preemption(
        cause=found.cause,
        left_s=found.left_s,
        takes_node=found.takes_node,
        attempts=[
            pb.Fated(
                root=str(one.place.root),
                experiment=one.place.experiment,
                run=one.place.run,
                step=one.step,
                fate=one.fate.value,
                why=one.why,
            )
            for one in found.attempts
        ],
    )


def _save(progress: AttemptProgress) -> pb.Save:
    place = progress.attempt.job.place
    return pb.Save(
        attempt=attempt_message(progress),
        root=str(place.root),
        experiment=place.experiment,
        run=place.run,
        rate_bytes_per_s=progress.rate_bytes_per_s,
        eta_s=progress.eta_s,
    )
