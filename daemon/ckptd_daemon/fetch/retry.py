"""How long to wait before asking again; and when to give up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ckptd_daemon.fetch.progress import Gauge
from ckptd_daemon.sources.source import TransientError
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import DamagedError
from ckptd_proto import errors

BASE_S = 0.1
CAP_S = 15.0
RETRY_AFTER_MAX_S = 120.0
CHUNK_TRIES = 3  # a connection may damage what it brings

V = TypeVar("V")


def delay_s(failures: int, retry_after_s: float | None, jitter: float) -> float:
    """Return the wait after so many failures in a row; *jitter* is drawn from [0, 1).

    The origin's own wish comes first, up to a bound.
    """
    if retry_after_s is not None:
        return min(retry_after_s, RETRY_AFTER_MAX_S)
    return min(CAP_S, BASE_S * 2.0 ** (failures - 1)) * (0.5 + jitter)


class Patience:
    """Counts the failures in a row of one thing, and waits between them."""

    def __init__(self, name: str, retries: int) -> None:
        self._name = name
        self._retries = retries
        self._failures = 0

    def succeeded(self) -> None:
        """Start counting anew."""
        self._failures = 0

    async def wait(self, error: TransientError) -> None:
        """Wait before the next try; raises `Unavailable` when there were enough."""
        self._failures += 1
        if self._failures > self._retries:
            raise errors.Unavailable(
                f"{self._name}: given up after {self._failures} tries in a row: {error}; "
                "what was fetched is kept, try again later"
            ) from error
        await anyio.sleep(delay_s(self._failures, error.retry_after_s, random.random()))


class Damages:
    """Counts how often each chunk of one object came with another checksum than it is to have."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: Counter[int] = Counter()

    def note(self, error: DamagedError, header: Header) -> None:
        """Count *error*; raises `DataLoss` when the chunk was damaged often enough."""
        self._counts[error.index] += 1
        if self._counts[error.index] < CHUNK_TRIES:
            return
        start, end = header.extent(error.index)
        raise errors.DataLoss(
            f"{self._name}: bytes {start} to {end} came {CHUNK_TRIES} times with another checksum "
            "than they are known to have; the origin's copy is damaged, tell whoever runs it"
        ) from error


async def patiently(work: Callable[[], Awaitable[V]], name: str, retries: int, gauge: Gauge) -> V:
    """Return what *work* returns, trying again while its failures may pass."""
    patience = Patience(name, retries)
    phase = gauge.phase
    while True:
        try:
            return await work()
        except TransientError as error:
            gauge.retry(error)
            await patience.wait(error)
            gauge.enter(phase)
