"""`ckptd bench restore`, played small: that it measures rightly, never how fast anything is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckptd.bench.jobs import WrongError
from ckptd.bench.restores import cases, target, targets
from ckptd.bench.restores.orders import Task
from ckptd.bench.restores.stage import Plan, Stage, drop, read, stage
from ckptd.bench.saves.memory import COLUMNS, TENSORS, noise, rank_bytes
from ckptd.tensors.residency import is_resident

pytestmark = pytest.mark.timeout(240)  # it loads torch a dozen times
TINY = Plan(ranks=1, rank_bytes=1 << 20, repeats=1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("bench")
    with stage(folder, TINY, (targets.DCP,), lambda line: None) as running:
        yield running


def test_a_race_runs_end_to_end(here: Stage) -> None:
    outcome = cases.CASES["cold"](here)
    assert [row.problem for row in outcome.rows] == ["", "", ""]
    ours, peer, bar = outcome.rows
    assert (ours.name, peer.name, bar.name) == ("ckptd", targets.DCP, here.bar.name)
    for row in outcome.rows:
        assert row.median("bytes_per_s") == here.size_bytes / row.median("restored_s") > 0
    assert ours.figures["cpu_s"].values
    assert len(outcome.verdicts) == 2


def test_what_was_saved_is_loaded_from_memory_without_its_files(here: Stage) -> None:
    for image in here.folder("ckptd").rglob("*.distcp"):
        image.rename(image.with_suffix(".away"))
    try:
        assert here.load("ckptd", "memory", 1, is_checked=True)["restored_s"] > 0
    finally:
        for image in here.folder("ckptd").rglob("*.away"):
            image.rename(image.with_suffix(".distcp"))


def test_what_lies_in_memory_is_found_to_be_touched_before_the_clock_starts(here: Stage) -> None:
    sizes = [slot.stat().st_size for slot in here.remembering.slots()]
    assert sum(sizes) >= here.size_bytes
    assert here.forgetful.slots() == []


def test_another_number_of_ranks_loads_the_same(here: Stage) -> None:
    assert here.load("ckptd", "cold", TINY.other_ranks, is_checked=True)["restored_s"] > 0


def test_a_way_that_loads_other_elements_is_out(here: Stage) -> None:
    with pytest.raises(WrongError, match="came back with other elements"):
        here.load(targets.COPY, "memory", 1, is_checked=True)  # it copies ones


def test_what_was_loaded_is_compared_bit_by_bit() -> None:
    size = rank_bytes(TENSORS * COLUMNS * 4 * 3)
    with noise(2, size) as folder:
        parts = [torch.cat(list(target._saved(task(1, folder, size), 0))) for _ in range(2)]
        state = {"layers.0.weight": parts[0].view(torch.float32)}
        assert target.problem(task(1, folder, size), state) == ""
        parts[0][5, 7] += 1
        assert "layers.0.weight came back" in target.problem(task(1, folder, size), state)
        second = {"layers.0.weight": parts[1][3:].view(torch.float32)}
        assert target.problem(task(2, folder, size, rank=1), second) == ""


def task(ranks: int, folder: Path, size: int, rank: int = 0) -> Task:
    return Task("ckptd", rank, ranks, 2, 0, str(folder), size)


def test_files_are_where_a_case_wants_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        drop(path)
        if is_resident(file.fileno(), 0, 1 << 20):
            pytest.skip("needs a disk below the temporary directory")
        read(path)
        assert is_resident(file.fileno(), 0, 1 << 20)
