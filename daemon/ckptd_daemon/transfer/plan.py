"""Which bytes of one partial are missing, being brought, or written: decisions only, no I/O.

The event loop hands out claims; the thread of a stream asks its claim how far it may go. Both
under one lock, so that a claim can be cut short, or raced, while its bytes come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from ckptd_daemon.store import crc
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import PAGE_BYTES
from ckptd_daemon.transfer.ranges import Range, Ranges

RUN_MAX_CHUNKS = 4  # of one request: between two a connection brings nothing, and more is to lose
TURNS = 2  # more, of the same length, are left for each connection: at the end all end together
PART_MIN_BYTES = 4 << 20  # of a chunk: less is never worth a request
CUT_BYTES = 1 << 20  # what is being received cannot be cut off; so little may be, and can be raced
PIECES = 4  # of what is left of a claim, at least, if they are no smaller than that
PIECES_OF_ALL = 64  # likewise


@dataclass(eq=False, slots=True)
class Claim:
    """A range that one stream brings by one request, block by block."""

    plan: Plan = field(repr=False)
    start: int
    end: int
    """Falls when the claim is cut, or beaten."""
    at: int
    """Everything before is written; a multiple of the page until the end."""
    got: int
    """Everything before has come."""
    promised: int
    """Everything before has come or is being received, and is not to be cut off."""
    block_end: int
    rival: Claim | None = field(default=None, repr=False)
    """Brings the tail of this one, or this one its tail, over another connection."""
    is_racer: bool = False
    """Began only to beat its rival: may write nothing before all of it has come."""
    is_beaten: bool = False
    coming: Callable[[], int] = field(default=int, repr=False)
    """Tells how much has come of the piece that is being received."""

    @property
    def reached(self) -> int:
        """Up to where it has come, also within a piece."""
        with self.plan.lock:
            return self.got + self.coming()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to bring."""
        return self.at >= self.end

    def asks(self) -> Range | None:
        """Begin anew; returns what to ask the origin for, None if nothing is left to bring."""
        with self.plan.lock:
            self.got = self.promised = self.block_end = self.at
            return None if self.is_over else (self.at, self.end)

    def block(self, buffer_bytes: int) -> int:
        """Begin a block; returns how much it may hold, 0 at the end. It never spans two chunks."""
        with self.plan.lock:
            end = min(self.at + buffer_bytes, self.plan.chunk_end(self.at), self.end)
            self.block_end = max(self.at, end)
            return self.block_end - self.at

    def promise(self, piece_bytes: int) -> int:
        """Return how much to receive next as one piece, 0 when the block is full."""
        with self.plan.lock:
            at_most = max(CUT_BYTES, min((self.end - self.got) // PIECES, self.plan.piece_bytes))
            end = min(self.got + min(piece_bytes, at_most), self.block_end, self.end)
            self.promised = max(end, self.got)
            return self.promised - self.got

    def came(self, piece_bytes: int) -> None:
        """Have received a piece, or so much of it."""
        with self.plan.lock:
            self.got += piece_bytes
            self.coming = int

    def settle(self) -> int:
        """Return how much of what came may be written, and end a race by that."""
        with self.plan.lock:
            if self.rival is not None:
                _yield(self.rival if self.got >= self.end else self)
            stop = min(self.got, self.end)
            return (stop if stop == self.end else _page_down(stop)) - self.at

    def wrote(self, length: int, checksum: int) -> tuple[int, int] | None:
        """Have written so much; returns the chunk that it completed, and its CRC32C."""
        with self.plan.lock:
            offset, self.at = self.at, self.at + length
            return self.plan.joined(offset, length, checksum)


def _yield(claim: Claim) -> None:
    """Leave what two claims bring to the other one."""
    rival, claim.rival = claim.rival, None
    assert rival is not None
    rival.rival = None
    claim.is_beaten = True
    claim.end = claim.at if claim.is_racer else rival.start
    rival.is_racer = False


class Plan:
    """The bytes of one partial: each missing, claimed, written, or landed with its chunk."""

    def __init__(self, header: Header, missing: Iterable[int]) -> None:
        self.lock = threading.Lock()  # guards everything here, and in the claims
        self.piece_bytes = (header.size_bytes or 0) // PIECES_OF_ALL
        """What is worth bringing twice, if need be."""
        self._header = header
        self._gaps = Ranges()
        self._claims: list[Claim] = []
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}  # offset, length, CRC32C
        for index in missing:
            self._gaps.add(*header.extent(index))

    def __repr__(self) -> str:
        return f"<Plan [{len(self._claims)} claims] {self._gaps}>"

    @property
    def claims(self) -> list[Claim]:
        """What is being brought."""
        return list(self._claims)

    @property
    def is_done(self) -> bool:
        """Whether everything is written."""
        return not (self._claims or self._gaps.total_bytes)

    @property
    def left_bytes(self) -> int:
        """How much has not come."""
        with self.lock:
            missing = (
                max(0, one.end - one.got - one.coming()) for one in self._claims if not one.is_racer
            )
            return self._gaps.total_bytes + sum(missing)

    def chunk_end(self, offset: int) -> int:
        """Return where the chunk ends that holds *offset*."""
        return self._header.extent(offset // self._header.chunk_bytes)[1]

    def next(
        self,
        urgent: Collection[int],
        *,
        is_whole: bool,
        streams: int = 1,
        part_bytes: int = 0,
    ) -> Range | None:
        """Return what to claim next: of the *urgent* chunks, then, if it *is_whole*, of all.

        That is the less the more *streams* are to share what is left, but not less than
        *part_bytes*. Costs as much as the urgent chunks that are being brought: those that landed
        are none.
        """
        for index in urgent:
            start, end = self._header.extent(index)
            if (gap := self._gaps.first(start, end)) is not None:
                if gap[1] == end and index + 1 in urgent:
                    end = self._header.extent(index + 1)[1]
                return self._gaps.first(gap[0], end)
        if not is_whole or (gap := self._gaps.first(0, self._header.size_bytes or 0)) is None:
            return None
        streams = max(streams, len(self._claims) + 1)
        return gap[0], min(gap[1], self._run_end(gap[0], streams, part_bytes))

    def _run_end(self, start: int, streams: int, part_bytes: int) -> int:
        """Return where a claim from *start* ends at most, of one of so many *streams*.

        Guided self-scheduling (Polychronopoulos and Kuck, 1987): each takes an equal part of a
        part of what is left, so that none is alone with much at the end.
        """
        turns = TURNS * streams if streams > 1 else 1
        fair_bytes = self._gaps.total_bytes // turns
        chunk_bytes, end = self._header.chunk_bytes, self.chunk_end(start)
        if fair_bytes >= chunk_bytes:
            return end + (min(RUN_MAX_CHUNKS, fair_bytes // chunk_bytes) - 1) * chunk_bytes
        parts = max(1, (end - start) // max(fair_bytes, part_bytes, PART_MIN_BYTES))
        return min(end, _page_up(start + (end - start) // parts))

    def claim(self, start: int, end: int) -> Claim:
        """Claim what is missing of the object between *start* and *end*, all of it."""
        with self.lock:
            self._gaps.take(start, end)
            return self._claimed(start, end)

    def _claimed(self, start: int, end: int) -> Claim:
        claim = Claim(self, start, end, start, start, start, start)
        self._claims.append(claim)
        return claim

    def end(self, claim: Claim) -> None:
        """Be done with *claim*: what it did not write is its rival's, or missing again."""
        with self.lock:
            if claim.rival is not None:
                _yield(claim)
            self._claims.remove(claim)
            self._gaps.add(claim.at, claim.end)

    def split(self, claim: Claim, keep_bytes: int) -> Claim | None:
        """Claim the end of *claim*, but what is on its way and *keep_bytes* more."""
        with self.lock:
            if claim not in self._claims:  # it has ended, and what it left is others' by now
                return None
            border = _page_up(claim.promised + keep_bytes)
            if claim.rival is not None or border >= claim.end:
                return None
            end, claim.end = claim.end, border
            claim.is_beaten = claim.is_over
            return self._claimed(border, end)

    def race(self, claim: Claim) -> Claim | None:
        """Claim what has not come of *claim*, too, if that is a part of one block."""
        with self.lock:
            if claim not in self._claims:
                return None
            if claim.rival is not None or not claim.got < claim.end <= claim.block_end:
                return None
            racer = self._claimed(_page_down(claim.got), claim.end)
            racer.is_racer = True
            racer.rival, claim.rival = claim, racer
            return racer

    def joined(self, offset: int, length: int, checksum: int) -> tuple[int, int] | None:
        """Note a written piece; returns the chunk that it completed, and its CRC32C."""
        index = offset // self._header.chunk_bytes
        start, end = self._header.extent(index)
        pieces = self._pieces.setdefault(index, [])
        pieces.append((offset, length, checksum))
        if sum(piece[1] for piece in pieces) < end - start:
            return None
        pieces.sort()
        for at, size, _ in pieces:
            if at != start:
                return None  # a hole, or twice the same: then it is not whole, whatever the sum
            start += size
        if start != end:
            return None
        del self._pieces[index]
        return index, crc.whole((found, size) for _, size, found in pieces)

    def redo(self, index: int) -> None:
        """Have chunk *index* missing again: its bytes, all written, were found to be damaged."""
        with self.lock:
            self._gaps.add(*self._header.extent(index))


def _page_up(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES


def _page_down(offset: int) -> int:
    return offset // PAGE_BYTES * PAGE_BYTES
