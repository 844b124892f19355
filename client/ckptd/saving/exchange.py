"""How the ranks of a job tell each other something: everyone says it, everyone hears all."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

import torch
import torch.distributed as dist

from ckptd.link import calls
from ckptd.link.connection import Stubs
from ckptd_proto import errors
from ckptd_proto.v1 import saves_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PART_BYTES = 512 << 10
_FIRST_BYTES = 4096
"""What one collective carries; longer payloads take a second one."""
GRACE_S = 10.0
"""How much later than the daemon's own deadline a call is given up."""
LEAD: Final = 0.5
"""Of the time that ranks wait for each other, what one may take to be told something first."""


class Job(Protocol):
    """What this process is a rank of, in the eyes of the daemon."""

    job: str

    def call(self, fn: Callable[[Stubs], T]) -> T:
        """Return what *fn* returns, called as a rank that the daemon knows."""


class Exchange(Protocol):
    """The way from each rank to all others."""

    rank: int
    world_size: int

    def begin(self) -> None:
        """Begin what all ranks do next: who failed before the others did is with them again."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload, in rank order.

        Raises `Aborted`, naming the rank, when one has died; `DeadlineExceeded` when one does
        not come.
        """

    def close(self) -> None:
        """Give back what the exchange holds."""


class Alone:
    """A world of one."""

    rank = 0
    world_size = 1

    def begin(self) -> None:
        """Nobody else is to be met."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the only payload."""
        return [payload]

    def close(self) -> None:
        """Nothing is held."""


class ProcessGroup:
    """The ranks of the job's process group, over a CPU group of our own."""

    def __init__(self, timeout_s: float, ranks: Sequence[int] | None = None) -> None:
        """Meet all ranks, or only *ranks*: then the others need not take part."""
        self._group = dist.new_group(
            None if ranks is None else list(ranks),
            backend="gloo",
            timeout=timedelta(seconds=timeout_s),
            use_local_synchronization=ranks is not None,
        )
        self.rank = dist.get_rank(self._group)
        self.world_size = dist.get_world_size(self._group)
        self.lost: Callable[[], str] = str
        """Says which ranks have died, once somebody knows."""

    def begin(self) -> None:
        """The group itself knows which collective is whose."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """One collective; a second one if a payload is long."""
        try:
            blocks = self._gather(len(payload).to_bytes(8, "little") + payload, _FIRST_BYTES)
            lengths = [int.from_bytes(block[:8], "little") for block in blocks]
            if max(lengths) + 8 > _FIRST_BYTES:
                blocks = [b"\0" * 8 + block for block in self._gather(payload, max(lengths))]
        except RuntimeError as error:
            raise self._failure(error) from error
        return [block[8 : 8 + length] for block, length in zip(blocks, lengths, strict=True)]

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _gather(self, payload: bytes, length: int) -> list[bytes]:
        mine = torch.frombuffer(bytearray(payload[:length].ljust(length, b"\0")), dtype=torch.uint8)
        theirs = [
            torch.empty(length, dtype=torch.uint8, device="cpu") for _ in range(self.world_size)
        ]
        dist.all_gather(theirs, mine, group=self._group)
        return [each.numpy().tobytes() for each in theirs]

    def _failure(self, error: RuntimeError) -> errors.CkptdError:
        if lost := self.lost():
            return errors.Aborted(f"{lost}; restart the job and load the latest checkpoint")
        text = f"the ranks could not reach each other over their process group ({error})"
        if "imed out" in str(error):
            return errors.DeadlineExceeded(f"{text}; look at what the other ranks do")
        return errors.Aborted(f"{text}; restart the job and load the latest checkpoint")


class ThroughDaemon:
    """The ranks of one node, by way of their daemon."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self._timeout_s = timeout_s
        self._job: Job | None = None
        self._generation = 0
        self._meetings = 0
        self._rounds = 0  # of this meeting
        self._standing_by = calls.Calls()

    def meet_in(self, job: Job, generation: int) -> None:
        """Exchange as a rank of *job*, the *generation*-th that this process has joined."""
        self._job, self._generation = job, generation

    def begin(self) -> None:
        """Count rounds anew, as those do that went on where this rank failed."""
        self._meetings += 1
        self._rounds = 0

    def all_gather(self, payload: bytes) -> list[bytes]:
        """One call; the daemon ends it at once when a rank dies."""
        self._rounds += 1
        deadline_s = self._timeout_s + GRACE_S
        name = f"exchange {self._generation}.{self._meetings}.{self._rounds}"

        def gather(stubs: Stubs) -> list[bytes]:
            gathered = [bytearray() for _ in range(self.world_size)]
            for part in stubs.saves.Gather(self._parts(name, payload), timeout=deadline_s):
                gathered[part.rank] += part.data
            return [bytes(each) for each in gathered]

        answer = self._joined.call(gather)
        threading.Thread(
            target=self._stand_by, args=(name, payload), name=f"ckptd-{name}", daemon=True
        ).start()
        return answer

    def close(self) -> None:
        """Answer for no round any more: the rank leaves its job."""
        self._standing_by.cancel()

    def _stand_by(self, name: str, payload: bytes) -> None:
        """Answer for a round that this rank has finished, until no rank can need it.

        The daemon may die when it has answered some ranks and not all: the others ask its next
        life, and this rank may be far away by then, in a training step.
        """
        calls.current.set(self._standing_by)
        try:
            self._joined.call(
                lambda stubs: list(stubs.saves.Gather(self._parts(name, payload, finished=True)))
            )
        except errors.CkptdError:
            logger.debug("no longer there for %s", name, exc_info=True)

    @property
    def _joined(self) -> Job:
        assert self._job is not None, "ranks meet in a job"
        return self._job

    def _parts(
        self, name: str, payload: bytes, *, finished: bool = False
    ) -> Iterator[saves_pb2.GatherPart]:
        yield saves_pb2.GatherPart(
            job=self._joined.job,
            rank=self.rank,
            round=name,
            timeout_s=self._timeout_s,
            data=payload[:_PART_BYTES],
            finished=finished,
        )
        for start in range(_PART_BYTES, len(payload), _PART_BYTES):
            yield saves_pb2.GatherPart(data=payload[start : start + _PART_BYTES])


class Watched:
    """An exchange that remembers why its ranks did not come together."""

    def __init__(self, exchange: Exchange) -> None:
        self.rank = exchange.rank
        self.world_size = exchange.world_size
        self.failure: errors.CkptdError | None = None
        """What was raised last; it says nothing of how far other ranks have come."""
        self._exchange = exchange

    def begin(self) -> None:
        """Do as the exchange does."""
        self._exchange.begin()

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Do as the exchange does."""
        try:
            return self._exchange.all_gather(payload)
        except errors.CkptdError as failure:
            self.failure = failure
            raise

    def close(self) -> None:
        """Do as the exchange does."""
        self._exchange.close()


def settle(exchange: Exchange, act: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what *act* returned on every rank; if it failed on one, every rank raises.

    So a rank that cannot go on leaves nobody waiting.
    """
    failure: Exception | None = None
    exchange.begin()
    try:
        said: dict[str, Any] = {"said": act()}
    except Exception as error:  # noqa: BLE001  told to the others, then raised
        failure = error
        said = {"error": type(error).__name__, "message": str(error)}
    try:
        heard = [json.loads(each) for each in exchange.all_gather(json.dumps(said).encode())]
    except errors.CkptdError as unheard:
        if failure is None:
            raise
        failure.add_note(f"besides, the other ranks could not be told: {unheard}")
        raise failure from unheard
    if failure is not None:
        raise failure
    for rank, each in enumerate(heard):
        if "error" in each:
            kind = each["error"]
            if kind in errors.BY_NAME:
                raise errors.rebuilt(kind, f"rank {rank}: {each['message']}")
            raise errors.Aborted(f"rank {rank} failed with {kind}: {each['message']}")
    return [each["said"] for each in heard]


def choose(*, alone: bool, timeout_s: float) -> Exchange:
    """Return the first way there is: a world of one, the process group, the daemon.

    Raises `FailedPrecondition` if there are other ranks and no way to them.
    """
    if alone:
        return Alone()
    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(timeout_s) if dist.get_world_size() > 1 else Alone()
    rank, world_size = _from_environment()
    if world_size == 1:
        return Alone()
    if int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) != world_size or (
        int(os.environ.get("SLURM_NNODES", "1")) != 1
    ):
        text = (
            "the job runs on several nodes and has no process group: call"
            " torch.distributed.init_process_group first"
        )
        raise errors.FailedPrecondition(text)
    return ThroughDaemon(rank, world_size, timeout_s)


def among(ranks: Sequence[int], timeout_s: float) -> Exchange:
    """Return the way between these *ranks* of the job's process group; all of them call it."""
    if len(ranks) == 1:
        return Alone()
    is_all = len(ranks) == dist.get_world_size()
    return ProcessGroup(timeout_s, None if is_all else sorted(ranks))


def _from_environment() -> tuple[int, int]:
    """Return rank and world size as torchrun or Slurm tell them; alone if nobody does."""
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world_size in os.environ:
            try:
                return int(os.environ[rank]), int(os.environ[world_size])
            except ValueError as error:
                text = f"{rank} and {world_size} of the environment must be numbers"
                raise errors.InvalidArgument(text) from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        text = (
            "WORLD_SIZE says there are other ranks, but neither a process group nor RANK tells"
            ' which one this is: call torch.distributed.init_process_group, or pass ranks="self"'
        )
        raise errors.FailedPrecondition(text)
    return 0, 1
