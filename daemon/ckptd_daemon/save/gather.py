"""All-gather among the ranks of one job, for jobs without a process group."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from ckptd_proto import errors

PAYLOADS_BYTES_MAX = 256 << 20  # of all jobs together: the daemon keeps them in memory


@dataclass(slots=True)
class Volume:
    """The bytes of payloads held now, by everybody."""

    bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count *size_bytes* more; raises `ResourceExhausted` beyond the limit."""
        if self.bytes + size_bytes > PAYLOADS_BYTES_MAX:
            free = PAYLOADS_BYTES_MAX - self.bytes
            text = (
                f"gathering {size_bytes} bytes more, {free} of {PAYLOADS_BYTES_MAX} are free; "
                f"exchange plans over a process group"
            )
            raise errors.ResourceExhausted(text, need_bytes=size_bytes, free_bytes=free)
        self.bytes += size_bytes


@dataclass(slots=True, eq=False)
class _Exchange:
    payloads: dict[int, bytes] = field(default_factory=dict)
    asking: int = 0
    """How many calls wait."""
    failure: errors.CkptdError | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    """No rank can need it any more, or nobody may wait for that."""


class Exchanges:
    """The exchanges of one job, by round."""

    def __init__(self, world_size: int, volume: Volume) -> None:
        self._world_size = world_size
        self._volume = volume
        self._rounds: dict[str, _Exchange] = {}
        self._is_dismissed = False

    def __len__(self) -> int:
        return len(self._rounds)

    async def gather(
        self, name: str, rank: int, payload: bytes, *, timeout_s: float
    ) -> list[bytes]:
        """Return every rank's payload in rank order, once all have come.

        Again by the same rank: the same answer, until every rank has come to a later round.
        Raises `DeadlineExceeded` naming who did not come, or what `fail` was told.
        """
        exchange = self._contribute(name, rank, payload)
        if exchange.settled.is_set():
            self._drop_left(but=name)
        exchange.asking += 1
        try:
            with anyio.move_on_after(timeout_s):
                await exchange.settled.wait()
        finally:
            exchange.asking -= 1
        if not exchange.settled.is_set():
            late = [rank for rank in range(self._world_size) if rank not in exchange.payloads]
            text = (
                f"ranks {', '.join(map(str, late))} of {self._world_size} did not come to "
                f"{name!r} in {timeout_s:g} s; look at what they do"
            )
            raise errors.DeadlineExceeded(text)
        if exchange.failure is not None:
            self._drop(name)
            raise exchange.failure
        return [exchange.payloads[rank] for rank in range(self._world_size)]

    async def stand_by(self, name: str, rank: int, payload: bytes) -> None:
        """Have the payload of a rank that has its answer, for those that may ask again.

        Returns when every rank has come to a later round.
        """
        exchange = self._contribute(name, rank, payload)
        if not self._is_dismissed:
            await exchange.over.wait()

    def dismiss(self) -> None:
        """Have nobody stand by from now on: all answers on their way will still arrive."""
        self._is_dismissed = True
        for exchange in self._rounds.values():
            exchange.over.set()

    def fail(self, failure: errors.CkptdError) -> None:
        """End every exchange that still waits for somebody."""
        for name, exchange in list(self._rounds.items()):
            if not exchange.settled.is_set():
                exchange.failure = failure
                exchange.settled.set()
                self._drop(name)

    def close(self) -> None:
        """Forget everything."""
        for name in list(self._rounds):
            self._drop(name)

    def _contribute(self, name: str, rank: int, payload: bytes) -> _Exchange:
        exchange = self._rounds.get(name)
        if exchange is None:
            exchange = self._rounds[name] = _Exchange()
        if rank not in exchange.payloads:
            self._volume.add(len(payload))
            exchange.payloads[rank] = payload
        elif exchange.payloads[rank] != payload:
            text = f"rank {rank} came to {name!r} twice with different payloads; use a new round"
            raise errors.InvalidArgument(text)
        if len(exchange.payloads) == self._world_size:
            exchange.settled.set()
        return exchange

    def _drop_left(self, *, but: str) -> None:
        """Drop the rounds in which nobody waits, now that all ranks have come to this one.

        Who has left a round, with an answer or without, has it behind; who has only lost its
        connection brings its payload again.
        """
        for name, exchange in list(self._rounds.items()):
            if name != but and not exchange.asking:
                self._drop(name)

    def _drop(self, name: str) -> None:
        if exchange := self._rounds.pop(name, None):
            self._volume.bytes -= sum(map(len, exchange.payloads.values()))
            exchange.over.set()
