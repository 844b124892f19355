"""A rank without torch: a process that speaks the save protocol, one command at a time.

Commands come as JSON lines on its stdin, one answer per line goes to its stdout. So a test says
when the rank does what, and may kill it between any two steps.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptd_proto import errors

ANSWER_S = 60.0


class Rank:
    """The test's end: starts the process and talks to it."""

    def __init__(
        self,
        socket: Path,
        root: Path,
        rank: int,
        world_size: int,
        *,
        within: Sequence[str] = (),
        **place: str,
    ) -> None:
        """*within* is a command that runs another where the rank is to live."""
        job = {"experiment": "e", "run": "r", "incarnation": "i"} | place
        self.rank = rank
        command = [sys.executable, __file__, str(socket), str(root), str(rank), str(world_size)]
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [*within, *command, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, command: str, **arguments: object) -> Any:
        """Run *command* in the rank and return its answer; raises the typed error it met."""
        self.begin(command, **arguments)
        return self.answer()

    def begin(self, command: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stderr.seek(0)
            raise AssertionError(f"rank {self.rank} ended: {self.stderr.read()}")
        answer = json.loads(line)
        if "error" in answer:
            raise errors.rebuilt(
                answer["error"],
                answer["message"],
                need_bytes=answer["need"],
                free_bytes=answer["free"],
            )
        return answer["result"]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self._close()

    def die_unseen(self) -> None:
        """SIGKILL, and wait for it as a bad parent: its pid stays taken."""
        self.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill it unless it is dead."""
        if self.process.returncode is None:
            self.kill()

    def _close(self) -> None:
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.stderr.close()


def content(name: str, size_bytes: int) -> bytes:
    """Return the bytes that every rank stages as image *name*: never the same for two names."""
    import hashlib

    block = hashlib.shake_128(name.encode()).digest(min(size_bytes, 1 << 20))
    return (block * -(-size_bytes // max(1, len(block))))[:size_bytes]


class _Client:
    """The rank's end."""

    def __init__(
        self, socket: str, root: str, rank: int, world_size: int, place: Mapping[str, str]
    ) -> None:
        from ckptd.link.connection import Connection

        self.connection = Connection.open(Path(socket))
        self.root, self.rank, self.world_size, self.place = root, rank, world_size, place
        self.maps: dict[str, mmap.mmap] = {}
        self.job = ""
        self.attempt = ""
        self.step = 0
        self.images: list[tuple[str, int]] = []

    def join(
        self,
        *,
        device: int | None = None,
        inode: int | None = None,
        read_only: bool = False,
        timeout_s: float | None = None,
    ) -> str:
        from ckptd_proto.v1 import saves_pb2 as pb

        stat = Path(self.root).stat() if Path(self.root).exists() else None
        request = pb.JoinRequest(
            root=self.root,
            rank=self.rank,
            world_size=self.world_size,
            root_device=device if device is not None else stat.st_dev if stat else 0,
            root_inode=inode if inode is not None else stat.st_ino if stat else 0,
            read_only=read_only,
            **self.place,
        )
        joined = self.connection.call(lambda stubs: stubs.saves.Join(request, timeout=timeout_s))
        self.connection.on_connect(lambda stubs: stubs.saves.Join(request))
        self.job = joined.job
        return joined.daemon

    def open(
        self,
        sequence: int,
        step: int,
        plan_hash: str = "p",
        replace: bool = False,
        images_bytes: int | None = None,
        when_full: str = "WAIT",
        daemons: Sequence[str] = (),
        supersedes: int | None = None,
    ) -> Any:
        from ckptd_proto.v1 import saves_pb2 as pb

        on_existing = pb.ON_EXISTING_REPLACE if replace else pb.ON_EXISTING_ERROR
        request = pb.OpenRequest(
            job=self.job,
            rank=self.rank,
            sequence=sequence,
            step=step,
            plan_hash=plan_hash,
            on_existing=on_existing,
            images_bytes=images_bytes,
            when_full=f"WHEN_FULL_{when_full}",
            daemons=list(dict.fromkeys(daemons)),
            daemon_of=[list(dict.fromkeys(daemons)).index(name) for name in daemons],
            supersedes=supersedes,
        )
        reply = self.connection.call(lambda stubs: stubs.saves.Open(request))
        if reply.skipped:
            return reply.skipped, "skipped"
        self.attempt, self.step = reply.attempt, step
        return reply.attempt, reply.committed.uuid

    def room(self) -> Any:
        """Return what the rank's daemon says of its memory, as it travels in headers."""
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.RoomRequest(job=self.job, rank=self.rank)
        room = self.connection.call(lambda stubs: stubs.saves.Room(request))
        waiting, held = list(room.waiting), list(room.held)
        return {"full": room.full, "waiting": waiting, "writing": room.writing, "held": held}

    def reserve(self, images: list[tuple[str, int]], timeout_s: float = 30.0) -> str:
        from ckptd_proto.v1 import saves_pb2 as pb

        self.images = [(name, size) for name, size in images]
        request = pb.ReserveRequest(
            attempt=self.attempt,
            rank=self.rank,
            images=[pb.Image(name=name, size_bytes=size) for name, size in images],
            timeout_s=timeout_s,
            mapped=list(self.maps),
        )
        reply = self.connection.call(lambda stubs: stubs.saves.Reserve(request))
        self.slot, self.offsets = reply.slot.id, list(reply.offsets)
        self._map(reply.slot)
        return self.slot

    def prepare(self, size: int) -> list[str]:
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.PrepareRequest(job=self.job, rank=self.rank, size_bytes=size)
        reply = self.connection.call(lambda stubs: stubs.saves.Prepare(request))
        for slot in reply.slots:
            self._map(slot)
        return [slot.id for slot in reply.slots]

    def copy(self, salt: str = "", still: Sequence[str] = ()) -> None:
        """Copy every image; those that are *still* are the same with any *salt*."""
        for (name, size), offset in zip(self.images, self.offsets, strict=True):
            salted = name if name in still else salt + name
            self.maps[self.slot][offset : offset + size] = content(salted, size)

    def seal(self, plan: list[tuple[str, int]] | None = None, metrics: Any = None) -> None:
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.SealRequest(
            attempt=self.attempt,
            rank=self.rank,
            plan=[pb.Image(name=name, size_bytes=size) for name, size in plan or []],
            metrics=metrics or {},
        )
        self.connection.call(lambda stubs: stubs.saves.Seal(request))

    def save(self, open: Any, images: Any, copy: Any, seal: Any) -> Any:
        """Do all that a rank does for one save, and return what became of it."""
        self.open(**open)
        self.reserve(images)
        self.copy(**copy)
        self.seal(**seal)
        return self.watch()

    def watch(self, until: str = "COMMITTED ABORTED", attempt: str | None = None) -> Any:
        """Follow the attempt until one of the states named, and return that."""
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.WatchRequest(
            attempt=attempt or self.attempt,
            root=self.root,
            experiment=self.place["experiment"],
            run=self.place["run"],
            step=self.step,
        )

        def follow(stubs: Any) -> Any:
            for event in stubs.saves.Watch(request):
                state = pb.AttemptState.Name(event.state).removeprefix("ATTEMPT_STATE_")
                if state in until.split():
                    return {
                        "state": state,
                        "error": event.error,
                        "reason": event.reason,
                        "path": event.checkpoint.path,
                        "superseded_by": event.superseded_by,
                    }
            raise AssertionError("the stream ended without an outcome")

        return self.connection.call(follow)

    def abort(self, reason: str) -> None:
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.AbortRequest(attempt=self.attempt, rank=self.rank, reason=reason)
        self.connection.call(lambda stubs: stubs.saves.Abort(request))

    def gather(self, round: str, data: str, timeout_s: float = 30.0, times: int = 1) -> Any:
        """Exchange *data*, repeated *times*, and return (length, head) per rank."""
        from ckptd_proto.v1 import saves_pb2 as pb

        payload = data.encode() * times
        part = 500 << 10

        def parts() -> Any:
            for start in range(0, max(1, len(payload)), part):
                yield pb.GatherPart(
                    job=self.job,
                    rank=self.rank,
                    round=round,
                    timeout_s=timeout_s,
                    data=payload[start : start + part],
                )

        def exchange(stubs: Any) -> Any:
            found: dict[int, bytes] = {}
            for reply in stubs.saves.Gather(parts()):
                found[reply.rank] = found.get(reply.rank, b"") + reply.data
            return [(len(found[rank]), found[rank][:20].decode()) for rank in sorted(found)]

        return self.connection.call(exchange)

    def roll(self) -> Any:
        from ckptd_proto.v1 import saves_pb2 as pb

        reply = self.connection.call(lambda stubs: stubs.saves.Roll(pb.RollRequest(job=self.job)))
        return [(lost.rank, lost.pid) for lost in reply.lost]

    def steps(self) -> list[int]:
        from ckptd_proto.v1 import checkpoints_pb2

        request = checkpoints_pb2.ListCheckpointsRequest(
            root=self.root, experiment=self.place["experiment"], run=self.place["run"]
        )
        return self.connection.call(
            lambda stubs: [each.step for each in stubs.checkpoints.List(request)]
        )

    def leave(self) -> None:
        from ckptd_proto.v1 import saves_pb2 as pb

        request = pb.LeaveRequest(job=self.job, rank=self.rank)
        self.connection.call(lambda stubs: stubs.saves.Leave(request))

    def _map(self, slot: Any) -> None:
        if slot.id not in self.maps:
            fd = self.connection.descriptor(slot.token)
            self.maps[slot.id] = mmap.mmap(fd, slot.size_bytes)
            os.close(fd)


def _serve() -> None:
    socket, root, rank, world_size, place = sys.argv[1:]
    client = _Client(socket, root, int(rank), int(world_size), json.loads(place))
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            answer = {"result": getattr(client, command)(**arguments)}
        except errors.CkptdError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
            answer |= {"need": getattr(error, "need_bytes", None)}
            answer |= {"free": getattr(error, "free_bytes", None)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
