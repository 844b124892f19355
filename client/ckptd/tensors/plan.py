"""Who writes what, and where: the same answer on every rank, from every rank's own list.

Pure: no torch, no files, no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ckptd.tensors import boxes
from ckptd.tensors.tree import Node
from ckptd_proto import errors

_BIG_BYTES = 1 << 20
_BIG_ALIGN_BYTES = 4096
_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece that a rank holds: a chunk of a tensor, or an object."""

    name: str
    dtype: str
    """Empty for an object."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    prefix_bytes: int
    payload_bytes: int
    balanced: bool = False
    """Any rank that holds it may write it; otherwise the lowest does."""
    still: bool = False
    """It is not expected to change: such pieces have a file of their own."""
    may_differ: bool = False
    """Copies that differ are worth a warning, no more: the lowest rank's is saved."""
    content: str = field(default="", compare=False)
    """Hash of what should not differ between ranks; empty if it may."""

    @property
    def is_object(self) -> bool:
        """It is no tensor."""
        return not self.dtype

    @property
    def box(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Its offsets and sizes: what tells it from other chunks of its tensor."""
        return self.offsets, self.sizes


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What one rank holds."""

    entries: tuple[Entry, ...]
    nodes: tuple[Node, ...]

    def hash(self) -> str:
        """Return a hash of everything that decides the global plan."""
        return hashlib.sha256(self._encoded(with_content=False)).hexdigest()

    def encode(self) -> bytes:
        """Return the plan as it travels to the other ranks."""
        return self._encoded(with_content=True)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the plan that `encode` made *data* from."""
        raw = json.loads(data)
        entries = tuple(
            Entry(name, dtype, tuple(shape), tuple(offsets), tuple(sizes), *rest)
            for name, dtype, shape, offsets, sizes, *rest in raw["entries"]
        )
        return cls(entries, tuple(Node.from_json(node) for node in raw["nodes"]))

    def _encoded(self, *, with_content: bool) -> bytes:
        entries = [
            [
                *(entry.name, entry.dtype, entry.shape, entry.offsets, entry.sizes),
                *(entry.prefix_bytes, entry.payload_bytes, entry.balanced, entry.still),
                entry.may_differ,
                entry.content if with_content else bool(entry.content),
            ]
            for entry in self.entries
        ]
        nodes = [node.to_json() for node in self.nodes]
        return json.dumps({"entries": entries, "nodes": nodes}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry at its place in the image of the rank that writes it."""

    entry: Entry
    rank: int
    start: int
    """Where its prefix begins."""

    @property
    def file(self) -> str:
        """The image that holds it."""
        return image_name(self.rank, still=self.entry.still)

    @property
    def payload_start(self) -> int:
        """Where its elements begin."""
        return self.start + self.entry.prefix_bytes

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.payload_start + self.entry.payload_bytes


@dataclass(frozen=True, slots=True)
class GlobalPlan:
    """Every piece of the checkpoint, exactly once."""

    placed: tuple[Placed, ...]
    nodes: tuple[Node, ...]
    images: tuple[Mapping[str, int], ...]
    """Per rank: the sizes of what it writes, by name; empty if it writes nothing."""
    shared: Mapping[tuple[int, ...], tuple[str, ...]]
    """By ranks that hold them: names whose contents must agree."""
    hash: str
    doubts: tuple[str, ...] = ()
    """What differs between ranks although it should not: a sentence for each."""

    def of_rank(self, rank: int) -> list[Placed]:
        """Return what *rank* writes, in the order of its images."""
        return [placed for placed in self.placed if placed.rank == rank]


def image_name(rank: int, *, still: bool = False) -> str:
    """Return the file that holds what *rank* writes, or what of it is not expected to change."""
    return f"__{rank}_{int(still)}.distcp"


def agree(plans: Sequence[LocalPlan], *, is_kept: bool = True) -> GlobalPlan:
    """Return the global plan of all ranks' *plans*; every rank computes the same.

    Contents may differ as long as nothing of them *is_kept*. Raises `InvalidArgument`, naming tensor and ranks, where they contradict each other, leave
    elements out or hold them twice.
    """
    holders: dict[str, list[tuple[int, Entry]]] = {}
    for rank, plan in enumerate(plans):
        for entry in plan.entries:
            holders.setdefault(entry.name, []).append((rank, entry))
    doubts: list[str] = []
    for name, held in holders.items():
        _check_alike(name, held)
        if is_kept and (difference := _difference(name, held)):
            if not held[0][1].may_differ:
                raise errors.InvalidArgument(difference)
            doubts.append(difference)
        _check_coverage(name, [entry for _, entry in held])
    owned = _owned(holders, len(plans))
    placed, images = _laid_out(owned)
    nodes = _merged(plans)
    shared = _shared(holders)
    digest = hashlib.sha256("".join(plan.hash() for plan in plans).encode()).hexdigest()
    return GlobalPlan(placed, nodes, images, shared, digest, tuple(doubts))


def _check_alike(name: str, held: Sequence[tuple[int, Entry]]) -> None:
    first_rank, first = held[0]
    for rank, entry in held[1:]:
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            text = (
                f"{name!r} is {_described(first)} on rank {first_rank}, but {_described(entry)}"
                f" on rank {rank}: put the rank into the key where ranks hold different things"
            )
            raise errors.InvalidArgument(text)


def _described(entry: Entry) -> str:
    return "an object" if entry.is_object else f"a {entry.dtype} tensor {list(entry.shape)}"


def _difference(name: str, held: Sequence[tuple[int, Entry]]) -> str:
    """Say between which ranks *name* differs; empty if it does not."""
    by_content: dict[tuple[Any, str], list[int]] = defaultdict(list)
    boxes_held: dict[Any, set[str]] = defaultdict(set)
    for rank, entry in held:
        if not entry.content:
            continue
        by_content[entry.box, entry.content].append(rank)
        boxes_held[entry.box].add(entry.content)
    if all(len(contents) == 1 for contents in boxes_held.values()):
        return ""
    groups = " and ".join(_ranks(ranks) for ranks in by_content.values())
    means = " (as DistributedDataParallel does)" if held[0][1].balanced else ""
    return (
        f"{name!r} differs between {groups}, and only one of them would be saved: put the rank"
        f" into the key (for example {name + '.' + str(held[-1][0])!r}) to keep each, or make"
        f" them equal{means}"
    )


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _check_coverage(name: str, entries: Iterable[Entry]) -> None:
    chunks = {entry.box: entry for entry in entries}
    first = next(iter(chunks.values()))
    if first.is_object:
        return
    if problem := boxes.coverage_problem(first.shape, list(chunks)):
        text = f"the chunks of {name!r} {list(first.shape)} {problem}: is a rank missing?"
        raise errors.InvalidArgument(text)


def _owned(holders: Mapping[str, list[tuple[int, Entry]]], world: int) -> list[list[Entry]]:
    """Give each chunk to one rank: replicas to the one with the least to write.

    What is still counts apart: it is written once, and everything else by every save.
    """
    owned: list[list[Entry]] = [[] for _ in range(world)]
    loads = {is_still: [0] * world for is_still in (False, True)}
    free: list[tuple[Entry, list[int]]] = []
    for held in holders.values():
        copies: dict[Any, tuple[Entry, list[int]]] = {}
        for rank, entry in held:
            copies.setdefault(entry.box, (entry, []))[1].append(rank)
        for entry, ranks in copies.values():
            if not _has_bytes(entry):
                continue
            if entry.balanced and len(ranks) > 1:
                free.append((entry, ranks))
            else:
                owned[ranks[0]].append(entry)
                loads[entry.still][ranks[0]] += entry.payload_bytes
    for entry, ranks in sorted(free, key=lambda pair: -pair[0].payload_bytes):  # stable
        load = loads[entry.still]
        rank = min((load[rank], rank) for rank in ranks)[1]
        owned[rank].append(entry)
        load[rank] += entry.payload_bytes + entry.prefix_bytes
    return owned


def _has_bytes(entry: Entry) -> bool:
    """Leave out empty shards; an empty tensor itself is kept."""
    return entry.is_object or math.prod(entry.shape) == 0 or entry.payload_bytes > 0


def _laid_out(
    owned: Sequence[Sequence[Entry]],
) -> tuple[tuple[Placed, ...], tuple[Mapping[str, int], ...]]:
    placed: list[Placed] = []
    images: list[Mapping[str, int]] = []
    for rank, entries in enumerate(owned):
        ends: dict[str, int] = {}
        for entry in sorted(entries, key=lambda entry: entry.still):  # stable
            end = ends.get(image_name(rank, still=entry.still), 0)
            align = _BIG_ALIGN_BYTES if entry.payload_bytes >= _BIG_BYTES else _ALIGN_BYTES
            payload_start = -(-(end + entry.prefix_bytes) // align) * align
            placed.append(Placed(entry, rank, payload_start - entry.prefix_bytes))
            ends[placed[-1].file] = placed[-1].end
        images.append(ends)
    return tuple(placed), tuple(images)


def _merged(plans: Sequence[LocalPlan]) -> tuple[Node, ...]:
    """Unite the ranks' trees, in the order of the lowest rank that has each node."""
    merged: dict[Any, tuple[int, Node]] = {}
    for rank, plan in enumerate(plans):
        for node in plan.nodes:
            first_rank, first = merged.setdefault(node.path, (rank, node))
            if first.kind != node.kind:
                text = (
                    f"{node.name!r} is a {first.kind} on rank {first_rank}, but a {node.kind} on"
                    f" rank {rank}: put the rank into the key where ranks hold different things"
                )
                raise errors.InvalidArgument(text)
    return tuple(node for _, node in merged.values())


def _shared(
    holders: Mapping[str, list[tuple[int, Entry]]],
) -> dict[tuple[int, ...], tuple[str, ...]]:
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, held in holders.items():
        ranks = tuple(rank for rank, entry in held if entry.content and not entry.may_differ)
        if len(ranks) > 1:
            groups[ranks].append(name)
    return {ranks: tuple(names) for ranks, names in groups.items()}
