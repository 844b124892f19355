"""Asks the daemon about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ckptd.link.connection import Connection
from ckptd.values import (
    ArenaStatus,
    AttemptStatus,
    CacheStatus,
    DaemonStatus,
    FatedSave,
    FlightStatus,
    Miss,
    Preempted,
    PreemptionStatus,
    RunStatus,
    Setting,
)
from ckptd_proto.v1 import checkpoints_pb2, node_pb2, saves_pb2

ANSWER_S = 30.0


def status(connection: Connection) -> DaemonStatus:
    """Return what the daemon is doing now."""
    request = node_pb2.StatusRequest()
    reply = connection.call(lambda stubs: stubs.node.Status(request, timeout=ANSWER_S))
    return DaemonStatus(
        version=reply.daemon.daemon_version,
        pid=reply.daemon.pid,
        uid=reply.daemon.uid,
        socket=reply.socket,
        state_dir=reply.state_dir,
        private=reply.daemon.private,
        idle=reply.daemon.idle,
        stopping=reply.draining,
        uptime_s=reply.uptime_s,
        sessions=reply.sessions,
        flights=tuple(map(_flight, reply.flights)),
        attempts=tuple(map(_attempt, reply.saves)),
        cache=CacheStatus(
            blobs=reply.cache.blobs,
            leases=reply.cache.leases,
            used_bytes=reply.cache.used_bytes,
            quota_bytes=reply.cache.quota_bytes or None,
            free_bytes=reply.cache.free_bytes,
        ),
        arena=ArenaStatus(
            slots=reply.arena.slots,
            idle_slots=reply.arena.idle_slots,
            used_bytes=reply.arena.used_bytes,
            budget_bytes=reply.arena.budget_bytes,
        ),
        runs=(*map(_saved, reply.newest), *map(_unsaved, reply.unsaved)),
        misses=tuple(
            Miss(each.id, each.object, each.error, each.sentence, each.at) for each in reply.misses
        ),
        preemption=_preemption(reply.preemption) if reply.HasField("preemption") else None,
    )


def notice(connection: Connection) -> Preempted | None:
    """Return whether the daemon's node is about to go away; asks the daemon."""
    request = node_pb2.NoticeRequest()
    reply = connection.call(lambda stubs: stubs.node.Notice(request, timeout=ANSWER_S))
    return Preempted(reply.cause, reply.left_s) if reply.HasField("left_s") else None


def stop(connection: Connection) -> None:
    """Have the daemon begin to stop."""
    request = node_pb2.StopRequest()
    connection.call(lambda stubs: stubs.node.Stop(request, timeout=ANSWER_S))


def settings(connection: Connection) -> dict[str, Setting]:
    """Return the settings in force, by name."""
    request = node_pb2.SettingsRequest()
    return _settings(connection.call(lambda stubs: stubs.node.Settings(request, timeout=ANSWER_S)))


def configure(connection: Connection, changes: Mapping[str, int | None]) -> dict[str, Setting]:
    """Change settings until the daemon ends; returns those in force then."""
    values = {name: json.dumps(value) for name, value in changes.items()}
    request = node_pb2.ConfigureRequest(changes=values)
    return _settings(connection.call(lambda stubs: stubs.node.Configure(request, timeout=ANSWER_S)))


def _settings(reply: node_pb2.SettingsReply) -> dict[str, Setting]:
    return {
        each.name: Setting(each.name, json.loads(each.value), each.changeable)
        for each in reply.settings
    }


def _flight(message: node_pb2.Flight) -> FlightStatus:
    return FlightStatus(
        message.key,
        message.object,
        message.phase,
        message.done_bytes,
        message.total_bytes if message.HasField("total_bytes") else None,
        message.waiters,
        message.streams,
        message.reason,
        message.cause,
        message.rate_bytes_per_s,
        message.eta_s if message.HasField("eta_s") else None,
    )


def _saved(message: checkpoints_pb2.Checkpoint) -> RunStatus:
    return RunStatus(
        message.root, message.experiment, message.run, message.step, message.committed_at
    )


def _unsaved(message: node_pb2.Run) -> RunStatus:
    return RunStatus(message.root, message.experiment, message.run, None, None)


def _preemption(message: node_pb2.Preemption) -> PreemptionStatus:
    return PreemptionStatus(
        message.cause,
        message.left_s,
        message.takes_node,
        tuple(
            FatedSave(each.root, each.experiment, each.run, each.step, each.fate, each.why)
            for each in message.attempts
        ),
    )


def _attempt(message: node_pb2.Save) -> AttemptStatus:
    attempt = message.attempt
    state = saves_pb2.AttemptState.Name(attempt.state).removeprefix("ATTEMPT_STATE_").lower()
    return AttemptStatus(
        attempt.id,
        message.root,
        message.experiment,
        message.run,
        attempt.step,
        state,
        attempt.done_bytes,
        attempt.total_bytes,
        message.rate_bytes_per_s,
        message.eta_s if message.HasField("eta_s") else None,
        attempt.note,
    )
