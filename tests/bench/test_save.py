"""`ckptd bench save`, played small: that it measures rightly, never how fast anything is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptd.bench.jobs import WrongError
from ckptd.bench.saves import cases, disk, trainer
from ckptd.bench.saves.job import Job
from ckptd.bench.saves.orders import Order
from ckptd.bench.saves.stage import Plan, Stage, stage
from ckptd.bench.saves.ways import WAYS
from ckptd.cli import bench
from fakes.require_real import need_programs
from fakes.running import ckptd

pytestmark = pytest.mark.timeout(300)  # it loads torch a dozen times
TINY = Plan(ranks=1, rank_bytes=1 << 20, repeats=1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("bench")
    with stage(folder, TINY, ("torch-save",), lambda line: None) as running:
        yield running


def test_a_race_runs_end_to_end_and_leaves_nothing(here: Stage) -> None:
    outcome = cases.CASES["steps"](here)
    assert [row.problem for row in outcome.rows] == ["", "", ""]
    ours, peer, bar = outcome.rows
    assert (ours.name, peer.name, bar.name) == ("ckptd", "torch-save", here.bar.name)
    for row in (ours, peer):
        assert row.median("durable_s") >= row.median("blocked_ms") / 1e3 > 0
        assert len(row.figures["cpu_s"].values) == TINY.repeats
    assert bar.median("bytes_per_s") > 0
    assert [path.name for path in here.scratch.iterdir()] == ["state"]
    assert any("of what the disk takes" in verdict.text for verdict in outcome.verdicts)


def test_a_way_whose_result_is_another_is_out(here: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(job: Job, order: Order) -> dict[str, float]:
        raise WrongError("rank 0: layers.0.weight came back with other elements")

    monkeypatch.setattr(Job, "save", lie)
    outcome = cases.CASES["quiet"](here)
    assert all(row.is_wrong and not row.figures for row in outcome.rows[:2])
    assert outcome.verdicts == ()


class Forgetful:
    """Saves nothing, and reads zeros."""

    def save(self, state: Any, folder: Path, step: int) -> Any:
        raise NotImplementedError

    def read(self, fresh: dict[str, Any], folder: Path, step: int) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(tensor) for name, tensor in fresh.items()}


def test_what_is_read_back_is_compared_bit_by_bit(tmp_path: Path) -> None:
    order = Order(str(tmp_path), 1, is_training=False, is_checked=True)
    zeros, other = torch.zeros(3), torch.tensor([0.0, -0.0, 0.0])
    assert trainer.problem(Forgetful(), {"a": zeros}, order) == ""
    assert trainer.problem(Forgetful(), {"a": other}, order) == "a came back with other elements"


@pytest.mark.parametrize("name", ["own", "fio"])
@pytest.mark.parametrize("size_bytes", [1 << 20, (9 << 20) + 4096])  # under a block; over one
def test_the_disk_is_measured_without_anything_between(
    tmp_path: Path, name: str, size_bytes: int
) -> None:
    if name == "fio":
        need_programs("fio")
    bar = disk.Bar(name, "")
    assert bar.write(tmp_path, size_bytes)["durable_s"] > 0
    assert bar.read(tmp_path, size_bytes)["restored_s"] > 0
    assert not list(tmp_path.iterdir())


def test_every_way_of_torch_is_offered() -> None:
    assert tuple(name for name in WAYS if name != "ckptd") == bench._WAYS


def test_peers_that_do_not_exist_are_refused_at_once() -> None:
    done = ckptd("bench", "save", "--peers", "dcp", env=os.environ)
    assert done.returncode == 2
    assert "choose of dcp-async" in done.stderr


def test_every_way_is_measured_beside_a_data_loader_and_told_as_json_and_picture(
    tmp_path: Path,
) -> None:
    picture, where = tmp_path / "bench.png", tmp_path / "disk"
    where.mkdir()
    tiny = ["--case", "loader", "--mib", "1", "--ranks", "1", "--repeats", "1"]
    given = [*tiny, "--directory", str(where), "--json", "-o", str(picture)]
    done = ckptd("bench", "save", *given, env=os.environ)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    by_name = {one["name"]: one for one in case["contestants"]}
    assert by_name.keys() >= {"ckptd", *bench._WAYS}
    for name in ("ckptd", *bench._WAYS):
        assert by_name[name]["figures"]["durable_s"]["median"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(where.iterdir()) == []
