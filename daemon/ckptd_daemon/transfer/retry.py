"""How long to wait before asking again; and when to give up."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from math import ceil
from typing import TypeVar

import anyio

from ckptd_daemon.sources.brakes import Brakes, host_of
from ckptd_daemon.sources.source import BrakedError, TransientError
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import DamagedError
from ckptd_daemon.transfer.hosts import Hosts
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_proto import errors

BASE_S = 0.1
CAP_S = 15.0
LOOK_S = 1.0  # how often it is told what a pause leaves to wait
BORNE_S = 120.0  # for so long refusals cost nothing where others are, or may be, served
CHUNK_TRIES = 3  # a connection may damage what it brings

V = TypeVar("V")


def delay_s(failures: int, jitter: float) -> float:
    """Return the wait after so many failures in a row; *jitter* is drawn from [0, 1).

    How long a host wants to be left alone altogether is for its `Brakes`.
    """
    return BASE_S + jitter * min(CAP_S - BASE_S, BASE_S * 3.0 ** min(failures, 32))


async def unbraked(brakes: Brakes, held: Callable[[str], object], *urls: str) -> None:
    """Wait while one of the hosts of *urls* wants to be left alone; *held* is told how long."""
    while (left_s := brakes.left_s(*urls)) > 0:
        host = host_of(max(urls, key=brakes.left_s))
        held(f"{host} asks to be left alone for {ceil(left_s)} s more")
        await anyio.sleep(min(left_s, LOOK_S))


class Patience:
    """Counts the failures in a row of one thing, and waits between them.

    A refusal for having asked too much is no failure while the host *is_giving* to somebody: it
    serves, and who is refused waits for his turn, longer each time. Only `BORNE_S` bound that. A
    host that this node has had nothing from yet gets the same chance: others of the fleet ask, too.
    """

    def __init__(
        self,
        name: str,
        retries: int,
        is_giving: Callable[[], bool] = bool,
        has_bytes: Callable[[], bool] = bool,
    ) -> None:
        self._name = name
        self._retries = retries
        self._is_giving = is_giving
        self._has_bytes = has_bytes  # that came, and stay
        self._failures = 0
        self._borne = 0  # refusals in a row that were none
        self._refused_at = 0.0  # the first of these

    def succeeded(self) -> None:
        """Start counting anew."""
        self._failures = self._borne = 0

    async def breathe(self) -> None:
        """Wait a little after a failure that some progress came before: it costs no try."""
        self.succeeded()
        await anyio.sleep(delay_s(0, random.random()))

    async def wait(self, error: TransientError) -> None:
        """Wait before the next try; raises `Unavailable` when there were enough."""
        if error.is_throttled and self._is_borne(anyio.current_time()):
            self._borne += 1
            await anyio.sleep(delay_s(self._borne, random.random()))
            return
        self._failures += 1
        if self._failures > self._retries:
            raise errors.Unavailable(
                f"{self._name}: given up after {self._failures} tries in a row: {error}; "
                f"{self._advice(error)}try again later"
            ) from error
        await anyio.sleep(delay_s(self._failures, random.random()))

    def _advice(self, error: TransientError) -> str:
        if self._has_bytes():
            return "what was fetched is kept, "
        return "check host and port, or " if error.is_nowhere else ""

    def _is_borne(self, now: float) -> bool:
        """Whether a refusal *now* costs no try."""
        if self._borne == 0:
            self._refused_at = now
        return self._is_giving() and now - self._refused_at < BORNE_S


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


async def patiently(
    work: Callable[[], Awaitable[V]],
    url: str,
    name: str,
    retries: int,
    gauge: Gauge,
    brakes: Brakes,
    hosts: Hosts,
) -> V:
    """Return what *work*, which asks *url*, returns; tries again while its failures may pass."""
    patience = Patience(name, retries, functools.partial(hosts.is_giving, url))
    phase = gauge.phase
    hold = functools.partial(gauge.enter, Phase.WAITING, Cause.THROTTLED)
    while True:
        await unbraked(brakes, hold, url)
        gauge.enter(phase)
        try:
            async with hosts.asking(url):
                return await work()
        except BrakedError as error:
            await unbraked(brakes, hold, error.url)
        except TransientError as error:
            gauge.retry(error)
            await patience.wait(error)
