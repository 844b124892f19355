from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.tensors import plan
from ckptd.tensors.plan import Entry, LocalPlan
from ckptd.tensors.tree import LEAF, Node
from ckptd_proto import errors

PREFIX_BYTES = 341


def tensor(
    name: str,
    shape: tuple[int, ...],
    offsets: tuple[int, ...] | None = None,
    sizes: tuple[int, ...] | None = None,
    *,
    balanced: bool = False,
    content: str = "",
) -> Entry:
    sizes = shape if sizes is None else sizes
    offsets = (0,) * len(shape) if offsets is None else offsets
    payload_bytes = 4 * math.prod(sizes)
    return Entry(
        *(name, "float32", shape, offsets, sizes, PREFIX_BYTES, payload_bytes),
        balanced=balanced,
        content=content,
    )


def held(name: str, *, content: str = "") -> Entry:
    return Entry(name, "", (), (), (), 0, 256, content=content)


def local(*entries: Entry) -> LocalPlan:
    return LocalPlan(entries, tuple(Node((entry.name,), LEAF) for entry in entries))


def rows(name: str, shape: tuple[int, ...], cuts: list[int]) -> list[Entry]:
    """Shards of dimension 0 between *cuts*."""
    edges = [0, *sorted(cuts), shape[0]]
    return [
        tensor(name, shape, (start, *[0] * (len(shape) - 1)), (end - start, *shape[1:]))
        for start, end in itertools.pairwise(edges)
    ]


@given(
    count=st.integers(0, 50), cuts=st.lists(st.integers(0, 50), max_size=6), width=st.integers(1, 4)
)
def test_shards_that_cover_a_tensor_are_each_written_once(
    count: int, cuts: list[int], width: int
) -> None:
    shards = rows("w", (count, width), [min(cut, count) for cut in cuts])
    agreed = plan.agree([local(shard) for shard in shards])
    written = sum(math.prod(placed.entry.sizes) for placed in agreed.placed)
    assert written == count * width
    assert len(agreed.placed) >= 1


@given(
    st.lists(st.integers(0, 3 << 20), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 7),
)
def test_pieces_of_an_image_are_aligned_and_do_not_overlap(
    sizes: list[int], world: int, every: int
) -> None:
    entries = [
        replace(tensor(f"t{i}", (size // 4,), balanced=True), still=i % every == 0)
        for i, size in enumerate(sizes)
    ]
    agreed = plan.agree([local(*entries)] * world)
    assert sorted(placed.entry.name for placed in agreed.placed) == sorted(e.name for e in entries)
    for rank in range(world):
        ends: dict[str, int] = {}
        for placed in agreed.of_rank(rank):
            assert placed.file == f"__{rank}_{int(placed.entry.still)}.distcp"
            assert placed.start >= ends.get(placed.file, 0)
            big = placed.entry.payload_bytes >= 1 << 20
            assert placed.payload_start % (4096 if big else 64) == 0
            ends[placed.file] = placed.end
        assert agreed.images[rank] == ends


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40), st.integers(2, 5))
def test_replicated_parameters_are_spread_evenly_by_bytes(sizes: list[int], world: int) -> None:
    entries = [tensor(f"t{i}", (size * 1000,), balanced=True) for i, size in enumerate(sizes)]
    agreed = plan.agree([local(*entries)] * world)
    loads = [
        sum(placed.entry.payload_bytes for placed in agreed.of_rank(rank)) for rank in range(world)
    ]
    largest = max(entry.payload_bytes for entry in entries)
    assert max(loads) - min(loads) <= largest + PREFIX_BYTES * len(sizes)


def test_what_is_still_and_what_changes_are_each_spread_evenly() -> None:
    entries = [replace(tensor(f"t{i}", (1000,), balanced=True), still=i < 4) for i in range(8)]
    agreed = plan.agree([local(*entries)] * 2)
    for rank in range(2):
        mine = [placed.entry.still for placed in agreed.of_rank(rank)]
        assert mine == [False, False, True, True]


def test_buffers_and_objects_held_by_several_ranks_come_from_the_lowest() -> None:
    entries = (tensor("mean", (8,)), held("epoch", content="a"))
    agreed = plan.agree([local(), local(*entries), local(*entries)])
    assert {placed.rank for placed in agreed.placed} == {1}


def test_keys_that_only_some_ranks_have_are_kept() -> None:
    agreed = plan.agree([local(held("rng.0")), local(held("rng.1"))])
    assert [(placed.entry.name, placed.rank) for placed in agreed.placed] == [
        ("rng.0", 0),
        ("rng.1", 1),
    ]
    assert [node.name for node in agreed.nodes] == ["rng.0", "rng.1"]


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ([((0,), (4,)), ((5,), (5,))], "hold 9 of its 10 elements"),
        ([((0,), (6,)), ((5,), (5,))], "overlap"),
        ([((0,), (5,)), ((5,), (6,))], "reach outside"),
    ],
)
def test_shards_that_do_not_tile_their_tensor_are_refused_by_name(
    shards: list[tuple[tuple[int], tuple[int]]], said: str
) -> None:
    plans = [local(tensor("model.w", (10,), offsets, sizes)) for offsets, sizes in shards]
    with pytest.raises(errors.InvalidArgument, match=said) as caught:
        plan.agree(plans)
    assert "'model.w'" in str(caught.value)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 6),
    st.data(),
)
def test_a_grid_of_blocks_tiles_and_one_block_less_or_moved_does_not(
    height: int, width: int, cell: int, data: st.DataObject
) -> None:
    shape = (height * cell, width * cell)
    blocks = [
        tensor("w", shape, (row * cell, column * cell), (cell, cell))
        for row in range(height)
        for column in range(width)
    ]
    assert len(plan.agree([local(block) for block in blocks]).placed) == len(blocks)
    lost = data.draw(st.integers(0, len(blocks) - 1))
    if len(blocks) > 1:
        with pytest.raises(errors.InvalidArgument, match="elements"):
            plan.agree([local(block) for i, block in enumerate(blocks) if i != lost])
    if cell > 1 and len(blocks) > 1:
        row, column = blocks[lost].offsets
        shift = -1 if row + cell == shape[0] else 1
        blocks[lost] = replace(blocks[lost], offsets=(max(0, row + shift), column))
        if blocks[lost].offsets[0] != row:
            with pytest.raises(errors.InvalidArgument, match=r"overlap|elements"):
                plan.agree([local(block) for block in blocks])


def test_objects_that_differ_between_ranks_are_refused_with_ranks_and_a_way_out() -> None:
    plans = [local(held("rng", content=content)) for content in "abb"]
    with pytest.raises(errors.InvalidArgument) as caught:
        plan.agree(plans)
    text = str(caught.value)
    assert "'rng' differs between rank 0 and ranks 1, 2" in text
    assert "'rng.2'" in text


def test_ranks_that_disagree_on_a_tensor_are_told_who_has_what() -> None:
    with pytest.raises(errors.InvalidArgument, match=r"\[2\] on rank 0, but .* \[3\] on rank 1"):
        plan.agree([local(tensor("w", (2,))), local(tensor("w", (3,)))])


def test_an_empty_tensor_is_written_and_empty_shards_are_not() -> None:
    empty = plan.agree([local(tensor("e", (0, 3)))])
    assert len(empty.placed) == 1
    shards = [tensor("w", (2,), (0,), (2,)), tensor("w", (2,), (2,), (0,))]
    assert [p.rank for p in plan.agree([local(s) for s in shards]).placed] == [0]


def test_contents_do_not_change_the_plan_and_everything_else_does() -> None:
    before = local(held("a", content="x"), tensor("w", (2,)))
    assert before.hash() == local(held("a", content="y"), tensor("w", (2,))).hash()
    assert before.hash() != local(held("a", content="x"), tensor("w", (3,))).hash()
    assert before.hash() != local(held("a", content="x")).hash()


def test_a_plan_travels_unchanged() -> None:
    nodes = (Node(("a", (1,), 2), LEAF), Node((), "dict"))
    before = LocalPlan((tensor("w", (2, 3), content="c"), held("o")), nodes)
    after = LocalPlan.decode(before.encode())
    assert after == before
    assert [entry.content for entry in after.entries] == ["c", ""]
    assert after.hash() == before.hash()
