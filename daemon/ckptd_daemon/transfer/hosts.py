"""Whose turn it is to open another stream: one budget for the daemon, a level for each host.

Shares are max-min fair: a seat goes to whoever waits with the fewest streams, and among these to
who has the least left to bring. Who has more than a fair share gives a seat back at its next
range; at once if somebody else has none at all. What nobody waits for comes last in all of this.

Questions about versions take no seats, so that a stream may ask one; their number has the same
limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import anyio

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.transfer.climb import SAMPLE_S, Climb

HOSTS_MAX = 4096
GIVING_S = 60.0  # for so long after it brought something a host counts as one that does


class Host:
    """The streams to one host, of all flights."""

    def __init__(self, climb: Climb) -> None:
        self.climb = climb
        self.seats = 0
        self.lowest_seats = 0  # since the last sample, or since the level was reached after it
        self.is_filling = True  # the level has not been reached since the last sample
        self.received_bytes = 0
        self.gave_at: float | None = None  # when it brought something last
        self.is_held = False  # by a limit of ours, some time since the last sample
        self._sampled: tuple[float, int] | None = None
        self.questions = 0
        self.answered = anyio.Event()  # of one of them

    def sample(self, now: float) -> bool:
        """Tell the climb, every so often, what came since; returns whether it was time to."""
        if self._sampled is None:
            self._sampled = now, self.received_bytes
        at, received = self._sampled
        if now - at < SAMPLE_S:
            return False
        if now - at < 2 * SAMPLE_S:
            rate = (self.received_bytes - received) / (now - at)
            if self.seats > self.climb.level and not self.is_held:
                self.climb.leaving(self.lowest_seats, rate)
            is_full = self.seats <= self.climb.level <= self.lowest_seats
            self.climb.sample(now, rate, is_full=is_full and not self.is_held)
        self.is_held = False
        self.is_filling = self.seats < self.climb.level
        self._sampled = now, self.received_bytes
        self.lowest_seats = self.seats
        return True

    def is_giving(self) -> bool:
        """Whether it has brought something lately; it may, too, as long as nobody has seen it."""
        return self.gave_at is None or anyio.current_time() - self.gave_at < GIVING_S

    def seated(self) -> None:
        """Have one more stream; what comes counts for the level once that is reached."""
        self.seats += 1
        if self.is_filling and self.seats >= self.climb.level:
            self.is_filling, self.lowest_seats = False, self.seats


class Share:
    """One flight's streams."""

    def __init__(
        self,
        hosts: Hosts,
        host: Host,
        left_bytes: Callable[[], int],
        recall: Callable[[], bool],
        is_urgent: Callable[[], bool],
    ) -> None:
        self._hosts = hosts
        self.host = host
        self.left_bytes = left_bytes
        self.recall = recall
        """Called when one seat is to be given back as soon as possible; tells whether it will be."""
        self.is_urgent = is_urgent
        """Tells whether somebody waits for it."""
        self.seats = 0
        self.standing = 0
        """Who left a seat for a while, and will want one again: none of this flight sits down more."""
        self.is_recalled = False
        self.waiting: deque[anyio.Event] = deque()
        """For a seat each."""

    @property
    def reach(self) -> int:
        """How many seats it has, and would have if it took all that are free."""
        return self.seats + self._hosts.free(self)

    @property
    def must_give(self) -> bool:
        """Whether a stream of this flight, having brought its range, is to make place."""
        return self._hosts.is_above(self)

    def take_nowait(self) -> bool:
        """Take a seat if there is one; tells whether there was."""
        granted = anyio.Event()
        self.waiting.append(granted)
        self._hosts.settle()
        if not granted.is_set():
            self.waiting.remove(granted)
        return granted.is_set()

    async def take(self) -> None:
        """Wait for a seat."""
        granted = anyio.Event()
        self.waiting.append(granted)
        await self._granted(granted)

    @asynccontextmanager
    async def stood(self) -> AsyncIterator[None]:
        """Leave a seat to other flights inside the block, and wait for one at its end.

        Nobody sits if the block, or that wait, is cancelled or fails.
        """
        self.standing += 1
        self.give()
        try:
            yield
        except BaseException:
            self.standing -= 1
            self._hosts.settle()
            raise
        self.standing -= 1
        granted = anyio.Event()
        self.waiting.appendleft(granted)
        await self._granted(granted)

    async def _granted(self, granted: anyio.Event) -> None:
        self._hosts.settle()
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self.give()
            else:
                self.waiting.remove(granted)
            raise

    def give(self) -> None:
        """Give a seat back."""
        self.seats -= 1
        self.host.seats -= 1
        self.host.lowest_seats = min(self.host.lowest_seats, self.host.seats)
        self.is_recalled = False
        self._hosts.settle()

    def received(self, n_bytes: int, *, is_held: bool) -> None:
        """Tell that *n_bytes* more came, and let the host's level follow what comes.

        *is_held*: by a limit of ours, so that it says nothing about the host.
        """
        self.host.received_bytes += n_bytes
        if n_bytes > 0:
            self.gave()
        self.host.is_held |= is_held
        if self.host.sample(anyio.current_time()):
            self._hosts.settle()

    def gave(self) -> None:
        """Tell that the host has brought something just now."""
        self.host.gave_at = anyio.current_time()

    def is_giving(self) -> bool:
        """Tell whether the host counts as giving, to whomever."""
        return self.host.is_giving()

    def throttled(self) -> None:
        """Tell that the host refused for having been asked too much."""
        self.host.climb.throttled(anyio.current_time())


class Hosts:
    """The streams of the daemon; of the event loop."""

    def __init__(self, *, start: int, streams_max: int) -> None:
        self.start = start
        """The level of a host of which nothing is known."""
        self._streams_max = streams_max
        self._hosts: dict[str, Host] = {}
        self._shares: list[Share] = []  # first come first
        self._remembered: Mapping[str, int] = {}

    def __repr__(self) -> str:
        waiting = sum(bool(share.waiting) for share in self._shares)
        return f"<Hosts [{self.seats} of {self._streams_max} streams, {waiting} flights wait]>"

    @property
    def seats(self) -> int:
        """How many streams there are."""
        return sum(share.seats for share in self._shares)

    def remember(self, levels: Mapping[str, int]) -> None:
        """Begin with *levels* where there are any, learned by an earlier life."""
        self._remembered = levels

    def learned(self) -> dict[str, int]:
        """Return the level of each host that is known to be good."""
        return {name: host.climb.safe for name, host in self._hosts.items()}

    @contextmanager
    def share(
        self,
        url: str,
        left_bytes: Callable[[], int],
        recall: Callable[[], bool] = bool,
        is_urgent: Callable[[], bool] = lambda: True,
    ) -> Iterator[Share]:
        """Have a flight from the host of *url* take part inside the block."""
        share = Share(self, self._host(url), left_bytes, recall, is_urgent)
        self._shares.append(share)
        try:
            yield share
        finally:
            self._shares.remove(share)
            share.host.seats -= share.seats  # of a taker that was cancelled before it sat down
            share.seats = 0
            self.settle()

    @asynccontextmanager
    async def asking(self, url: str) -> AsyncIterator[None]:
        """Ask the host of *url* something inside the block, once few enough others do."""
        host = self._host(url)
        while host.questions >= host.climb.level:
            await host.answered.wait()
        host.questions += 1
        try:
            yield
        finally:
            host.questions -= 1
            host.answered.set()
            host.answered = anyio.Event()

    def is_giving(self, url: str) -> bool:
        """Tell whether the host of *url* counts as giving, to whomever."""
        return self._host(url).is_giving()

    def throttled(self, url: str) -> None:
        """Tell that the host of *url* refused for having been asked too much."""
        self._host(url).climb.throttled(anyio.current_time())

    def _host(self, url: str) -> Host:
        name = host_of(url)
        if name not in self._hosts:
            idle = (
                known for known, host in self._hosts.items() if not (host.seats or host.questions)
            )
            if len(self._hosts) >= HOSTS_MAX and (oldest := next(idle, None)) is not None:
                del self._hosts[oldest]
            start = self._remembered.get(name, self.start)
            self._hosts[name] = Host(Climb(start, self._streams_max))
        return self._hosts[name]

    def settle(self) -> None:
        """Grant what there is to those who wait, and have the richest make place for the rest."""
        while True:
            free = self._streams_max - self.seats
            waiting = [share for share in self._shares if share.waiting]
            ready = [share for share in waiting if _may_sit(share, free)]
            if not ready:
                break
            chosen = min(ready, key=_turn)
            chosen.seats += 1
            chosen.host.seated()
            chosen.waiting.popleft().set()
        if waiting and not all(_needs(share) for share in self._shares if share.seats):
            for poor in waiting:
                if poor.seats == 0:
                    self._recall_for(poor)

    def _recall_for(self, poor: Share) -> None:
        rich = [one for one in self._rivals(poor) if _gives_way(one, poor)]
        if any(share.is_recalled for share in rich):
            return  # it is on its way
        for share in sorted(rich, key=lambda one: (one.is_urgent(), -one.seats)):
            if share.recall():
                share.is_recalled = True
                return

    def free(self, share: Share) -> int:
        """Return how many seats *share* may take, and nobody else waits for."""
        if any(other.waiting for other in self._rivals(share) if other is not share):
            return 0
        return max(0, min(_room(share.host), self._streams_max - self.seats))

    def is_above(self, share: Share) -> bool:
        """Tell whether *share* has more than is fair, now that others wait."""
        peers = [other for other in self._shares if other.host is share.host]
        is_over = share.host.seats > share.host.climb.level
        if is_over and share.seats == max(peer.seats for peer in peers) and share.host.seats > 1:
            return True
        return any(
            _owes(share, other) and share in self._rivals(other)
            for other in self._shares
            if other.waiting
        )

    def _rivals(self, poor: Share) -> list[Share]:
        """Return the shares whose seats *poor* could have."""
        if self.seats >= self._streams_max and _has_room(poor.host):
            return self._shares
        return [share for share in self._shares if share.host is poor.host]


def _may_sit(share: Share, free: int) -> bool:
    is_room = share.host.seats + share.standing < share.host.climb.level
    return is_room and share.standing < free


def _needs(share: Share) -> bool:
    """Whether *share*, which sits, gives way to nobody."""
    return share.seats == 1 and share.is_urgent()


def _turn(share: Share) -> tuple[bool, int, int]:
    return not share.is_urgent(), share.seats, share.left_bytes()


def _gives_way(share: Share, poor: Share) -> bool:
    """Whether *share* can do without a seat sooner than *poor*, which has none."""
    if poor.is_urgent() and not share.is_urgent():
        return share.seats > 0
    return share.seats > 1 and poor.is_urgent() == share.is_urgent()


def _owes(share: Share, other: Share) -> bool:
    """Whether *other*, which waits, is to have a seat of *share*'s."""
    if share.is_urgent() != other.is_urgent():
        return other.is_urgent()
    return other.seats + 1 < share.seats


def _room(host: Host) -> int:
    return host.climb.level - host.seats


def _has_room(host: Host) -> bool:
    return _room(host) > 0
