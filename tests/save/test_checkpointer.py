from __future__ import annotations

import random
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ckptd
from ckptd.tensors.values import same
from ckptd_proto import errors
from fakes.daemon import Daemon, short_directory
from fakes.running import ckptd as run_ckptd


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests here; each has a root of its own."""
    with short_directory() as directory, Daemon(directory) as one:
        yield one


@pytest.fixture
def ckpt(daemon: Daemon, tmp_path: Path) -> Iterator[ckptd.Checkpointer]:
    with ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket) as opened:
        yield opened


@pytest.fixture
def reader(daemon: Daemon, tmp_path: Path) -> Iterator[ckptd.Checkpointer]:
    with ckptd.Checkpointer(
        tmp_path, experiment="e", run="r", read_only=True, socket=daemon.socket
    ) as opened:
        yield opened


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_as_many_metrics_as_are_allowed_are_saved_and_more_are_refused_before_a_copy(
    ckpt: ckptd.Checkpointer,
) -> None:
    metrics = {f"validation/layer.{number}/grad_norm/{'x' * 90}": 0.5 for number in range(1024)}
    assert ckpt.save({"w": torch.ones(3)}, step=1, metrics=metrics).result(30).metrics == metrics
    long = {f"{number}{'ä' * 64}": 0.5 for number in range(1024)}
    for refused in (metrics | {"loss": 0.5}, long):
        with pytest.raises(errors.InvalidArgument, match=r"metrics .* are too many"):
            ckpt.save({"w": torch.ones(3)}, step=2, metrics=refused)
    assert ckpt.save({"w": torch.ones(3)}, step=2).result(30).step == 2


def flip_a_bit(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_resumed_job_takes_the_very_step_that_the_first_would_have(
    ckpt: ckptd.Checkpointer,
) -> None:
    def job(seed: int) -> dict[str, Any]:
        net = network(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        return {
            "model": net,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
            "rng": torch.get_rng_state(),
        }

    def step(state: dict[str, Any]) -> None:
        train(state["model"], state["optimizer"])
        state["scheduler"].step()

    first, second = job(1), job(2)
    step(first)
    first["rng"] = torch.get_rng_state()
    ckpt.save(first, step=1)
    step(first)
    ckpt.load(second)
    torch.set_rng_state(second["rng"])
    step(second)
    for name in ("model", "optimizer", "scheduler"):
        left, right = first[name].state_dict(), second[name].state_dict()
        assert same(_plain(left), _plain(right)), name


def _plain(value: Any) -> Any:
    """Make ordered and other dicts plain, so that only contents count."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_values_come_back_into_the_users_own_containers(ckpt: ckptd.Checkpointer) -> None:
    saved: dict[str, Any] = {
        "step": 7,
        "best": {"loss": 0.5, "at": (3, "x")},
        "history": [1.0, 2.0],
        "rng": [random.getstate(), np.random.get_state()],
        "array": np.arange(3),
        "scalar": np.float32(2),
        "sampler": {"epoch": {0: 1}, "order": [torch.arange(3), {"at": 5}]},
        "nothing": None,
        "bytes": b"\xff\0",
    }
    ckpt.save(saved, step=1)
    history: list[float] = []
    order = [torch.zeros(3, dtype=torch.int64), {"at": 0}]
    state: dict[str, Any] = dict.fromkeys(saved)
    state |= {"history": history, "sampler": {"epoch": {}, "order": order}, "best": {}}
    ckpt.load(state)
    assert same(state, saved)
    assert state["history"] is history
    assert state["sampler"]["order"] is order


def test_state_saved_in_another_precision_than_its_parameter_keeps_it(
    ckpt: ckptd.Checkpointer,
) -> None:
    nets = [nn.Linear(2, 2).bfloat16() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters()) for net in nets]
    third = torch.tensor([1 / 3])
    optimizers[0].state[nets[0].weight]["master"] = third
    ckpt.save({"model": nets[0], "optimizer": optimizers[0]}, step=1)
    ckpt.load({"model": nets[1], "optimizer": optimizers[1]})
    restored = optimizers[1].state[nets[1].weight]["master"]
    assert same(restored, third)


def test_objects_with_a_state_of_their_own_are_asked_and_told(ckpt: ckptd.Checkpointer) -> None:
    class Sampler:
        def __init__(self, state: Any) -> None:
            self.state = state

        def state_dict(self) -> Any:
            return self.state

        def load_state_dict(self, state: Any) -> None:
            self.state = state

    kept = {"epoch": 3, "seen": {1: torch.arange(2)}, "empty": {}, "pair": (1, 2)}
    ckpt.save({"sampler": Sampler(kept)}, step=1)
    fresh = Sampler({})
    ckpt.load({"sampler": fresh})
    assert same(fresh.state, kept)


def test_prepared_memory_is_what_the_saves_use_and_its_pages_are_there(
    ckpt: ckptd.Checkpointer,
) -> None:
    state = {"w": torch.randn(4 << 20)}
    ckpt.prepare(state)
    faults, saves = [], []
    for step in (1, 2):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        saves.append(ckpt.save(state, step=step))
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    assert [save.touched_bytes for save in saves] == [0, 0]
    assert max(faults) < (16 << 20) // 4096 / 4  # a page each would be 4,096
    assert saves[1].result(30).step == 2
    target = {"w": torch.zeros(4 << 20)}
    ckpt.load(target)
    assert torch.equal(target["w"], state["w"])


def test_a_save_that_was_not_prepared_says_what_it_waited_for(ckpt: ckptd.Checkpointer) -> None:
    first = ckpt.save({"w": torch.zeros(1 << 20)}, step=1)
    first.result(30)
    assert first.touched_bytes >= 4 << 20
    assert ckpt.save({"w": torch.ones(1 << 20)}, step=2).touched_bytes == 0  # the same memory


def test_what_is_saved_is_the_moment_of_the_call(ckpt: ckptd.Checkpointer) -> None:
    weights, note = torch.zeros(1 << 20), ["before"]
    save = ckpt.save({"w": weights, "note": note}, step=1)
    weights.fill_(1)
    note[0] = "after"
    save.result(30)
    target = {"w": torch.ones(1 << 20), "note": None}
    ckpt.load(target)
    assert not target["w"].any()
    assert target["note"] == ["before"]


def test_growing_values_do_not_disturb_and_changed_shapes_are_planned_anew(
    ckpt: ckptd.Checkpointer,
) -> None:
    for step, width in ((255, 3), (256, 3), (70_000, 4)):
        ckpt.save({"step": step, "w": torch.full((width,), float(step))}, step=step)
    for step, width in ((255, 3), (70_000, 4)):
        state = {"step": 0, "w": torch.zeros(width)}
        ckpt.load(state, step)
        assert (state["step"], state["w"][0]) == (step, step)


def test_everything_that_is_missing_or_different_is_listed_and_nothing_is_changed(
    ckpt: ckptd.Checkpointer,
) -> None:
    ckpt.save({"a": torch.ones(2), "b": torch.ones(2), "m": nn.Linear(2, 2), "v": 1}, step=1)
    a = torch.zeros(2)
    state = {
        "a": a,
        "b": torch.zeros(3),
        "c": torch.zeros(1),
        "m": nn.Linear(2, 2, bias=False),
        "v": torch.zeros(1),
        "d": {"e": None},
    }
    with pytest.raises(errors.InvalidArgument) as caught:
        ckpt.load(state)
    for said in (
        "b is [2] in the checkpoint and [3] here",
        "c is missing",
        "m.bias is saved, and the module has no such part",
        "v is no tensor",
        "d.e is missing",
    ):
        assert said in str(caught.value)
    assert not a.any()
    with pytest.raises(errors.InvalidArgument, match="float32 in the checkpoint and float64 here"):
        ckpt.load({"a": a.double()})


def test_an_optimizer_of_other_parameters_is_refused(ckpt: ckptd.Checkpointer) -> None:
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ckpt.save({"m": net, "o": torch.optim.SGD(net.parameters())}, step=1)
    with pytest.raises(errors.InvalidArgument, match="the parameters of o differ in bias"):
        ckpt.load({"m": other, "o": torch.optim.SGD([other.weight])})


def test_a_value_that_would_not_come_back_leaves_nothing_behind(
    ckpt: ckptd.Checkpointer, tmp_path: Path
) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"'hooks.log' holds a .*print.*state_dict"):
        ckpt.save({"hooks": {"log": print}, "w": torch.ones(2)}, step=1)
    assert ckpt.latest() is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["__0_0.distcp", "index.json", "__0_0.distcp.sums"])
def test_a_flipped_bit_is_data_loss_that_names_the_file(
    daemon: Daemon, ckpt: ckptd.Checkpointer, reader: ckptd.Checkpointer, name: str
) -> None:
    weights = torch.zeros(3 << 20)
    saved = ckpt.save({"w": weights}, step=1).result(30)
    daemon.forget(saved.uuid)
    path = saved.path
    offset = (path / name).stat().st_size * 3 // 4
    flip_a_bit(path / name, offset)
    with pytest.raises(errors.DataLoss) as caught:
        reader.load({"w": weights})
    assert str(path / name) in str(caught.value)
    if name == "__0_0.distcp":
        assert f"chunk {offset // (4 << 20)} " in str(caught.value)


def test_a_file_cut_short_or_gone_is_data_loss(
    daemon: Daemon, ckpt: ckptd.Checkpointer, reader: ckptd.Checkpointer
) -> None:
    saved = ckpt.save({"w": torch.ones(1000)}, step=1).result(30)
    daemon.forget(saved.uuid)
    path = saved.path / "__0_0.distcp"
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(errors.DataLoss, match="cut off"):
        reader.load({"w": torch.ones(1000)})
    with pytest.raises(errors.DataLoss, match=r"distcp has 100 bytes instead of"):
        reader.load({"w": torch.ones(1000)})  # known by now, and not read
    path.unlink()
    with pytest.raises(errors.DataLoss, match="missing"):
        reader.load({"w": torch.ones(1000)}, 1)


def test_only_the_chunks_that_are_needed_are_read(
    daemon: Daemon, ckpt: ckptd.Checkpointer, reader: ckptd.Checkpointer
) -> None:
    state = {"first": torch.ones(3 << 20), "last": torch.ones(3 << 20)}
    saved = ckpt.save(state, step=1).result(30)
    daemon.forget(saved.uuid)
    path = saved.path / "__0_0.distcp"
    flip_a_bit(path, path.stat().st_size - 1)
    target = {"first": torch.zeros(3 << 20)}
    reader.load(target)
    assert target["first"].all()


def test_a_committed_step_is_returned_again_or_refused(
    ckpt: ckptd.Checkpointer, daemon: Daemon, tmp_path: Path
) -> None:
    first = ckpt.save({"w": torch.ones(2)}, step=1).result(30)
    again = ckpt.save({"w": torch.zeros(2)}, step=1)
    assert again.done()
    assert again.result() == first
    with pytest.raises(errors.AlreadyExists, match="step"):
        ckpt.save({"w": torch.ones(3)}, step=1)
    replaced = ckpt.save({"w": torch.ones(3)}, step=1, on_existing="replace").result(30)
    assert replaced.uuid != first.uuid
    assert ckpt.latest() == replaced


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", 1 << 63])
def test_a_step_that_is_no_step_is_refused(ckpt: ckptd.Checkpointer, step: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="pass an int"):
        ckpt.save({}, step=step)


@pytest.mark.parametrize("name", ["..", "", "a/b", "a\nb", ".hidden", "x" * 129])
def test_names_that_cannot_be_directories_are_refused(
    daemon: Daemon, tmp_path: Path, name: str
) -> None:
    with pytest.raises(errors.InvalidArgument):
        ckptd.Checkpointer(tmp_path, experiment="e", run=name, socket=daemon.socket)
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_no_directory_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(errors.InvalidArgument, match="not a directory"):
        ckptd.Checkpointer(file, experiment="e", run="r", socket=daemon.socket)
    with pytest.raises(errors.Unimplemented, match="directories"):
        ckptd.Checkpointer("s3://bucket", experiment="e", run="r", socket=daemon.socket)


def test_metrics_are_kept_and_must_be_numbers(ckpt: ckptd.Checkpointer) -> None:
    metrics = {"loss": torch.tensor(0.5), "nan": float("nan")}
    checkpoint = ckpt.save({"w": 1}, step=1, metrics=metrics).result(30)
    assert checkpoint.metrics["loss"] == 0.5
    assert np.isnan(checkpoint.metrics["nan"])
    with pytest.raises(errors.InvalidArgument, match="'loss'"):
        ckpt.save({"w": 1}, step=2, metrics={"loss": "low"})  # type: ignore[dict-item]  # the mistake


def test_an_empty_state_can_be_saved_and_loaded(ckpt: ckptd.Checkpointer) -> None:
    ckpt.save({}, step=1)
    assert ckpt.load({}).step == 1


def test_the_latest_is_what_was_saved_last_and_nothing_is_not_found(
    ckpt: ckptd.Checkpointer,
) -> None:
    assert ckpt.latest() is None
    with pytest.raises(errors.NotFound, match="none"):
        ckpt.load({})
    for step in (9, 10, 8):
        ckpt.save({"step": step}, step=step).result(30)
    latest = ckpt.latest()
    assert latest is not None
    assert latest.step == 8
    state = {"step": 0}
    ckpt.load(state, 10)
    assert state == {"step": 10}


def test_what_fits_no_arena_is_refused_with_numbers_before_anything_is_copied(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_bytes=8 << 20) as daemon,
        ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket) as ckpt,
    ):
        with pytest.raises(errors.ResourceExhausted) as caught:
            ckpt.save({"w": torch.ones(4 << 20)}, step=1)
        assert caught.value.need_bytes is not None
        assert caught.value.need_bytes >= 16 << 20
        ckpt.save({"w": torch.ones(4)}, step=2).result(30)


def test_a_failure_in_the_background_is_told_by_the_next_save_once(
    daemon: Daemon, tmp_path: Path, ckpt: ckptd.Checkpointer
) -> None:
    ckpt.save({"w": 1}, step=1).result(30)
    run = tmp_path / "e" / "r"
    subprocess.run(["mv", str(run), f"{run}.away"], check=True)
    run.write_text("in the way")
    failing = ckpt.save({"w": 1}, step=2)
    assert failing.wait(30)
    with pytest.raises(errors.CkptdError) as caught:
        ckpt.save({"w": 1}, step=3)
    with pytest.raises(type(caught.value)):
        failing.result()
    run.unlink()
    ckpt.save({"w": 1}, step=3).result(30)


def test_a_closed_checkpointer_says_so(daemon: Daemon, tmp_path: Path) -> None:
    ckpt = ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket)
    save = ckpt.save({"w": 1}, step=1)
    ckpt.close(timeout=30)
    assert save.done()
    ckpt.close()
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        ckpt.save({"w": 1}, step=2)


def test_a_checkpointer_outlives_its_daemon(short_path: Path, tmp_path: Path) -> None:
    with (
        Daemon(short_path) as daemon,
        ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket) as ckpt,
    ):
        weights = torch.arange(1 << 20)
        first = ckpt.save({"w": weights}, step=1)
        daemon.kill()
        daemon.start()
        second = ckpt.save({"w": weights}, step=2)
        assert [first.result(30).step, second.result(30).step] == [1, 2]
        target = {"w": torch.zeros_like(weights)}
        ckpt.load(target)
        assert torch.equal(target["w"], weights)


def test_a_job_may_go_on_after_saves_that_fail(short_path: Path, tmp_path: Path) -> None:
    root, moved = tmp_path / "root", tmp_path / "moved"
    root.mkdir()
    with (
        Daemon(short_path, persist_retry_s=0) as daemon,
        ckptd.Checkpointer(
            root, experiment="e", run="r", socket=daemon.socket, on_failure=2
        ) as ckpt,
    ):
        ckpt.save({"x": 1}, step=1).result(timeout=60)
        root.rename(moved)  # the mount is lost
        root.mkdir()
        lost = ckpt.save({"x": 2}, step=2)
        assert lost.wait(60)
        with pytest.warns(ckptd.SaveFailed, match="mount it again"):
            lost = ckpt.save({"x": 3}, step=3)
        assert lost.wait(60)
        with pytest.raises(errors.FailedPrecondition, match="mount it again"):
            ckpt.save({"x": 4}, step=4)
        root.rmdir()
        moved.rename(root)
        assert ckpt.save({"x": 5}, step=5).result(timeout=60).step == 5


def test_a_save_tells_where_its_time_went(daemon: Daemon, tmp_path: Path) -> None:
    state = {"x": torch.ones(1 << 20)}
    with ckptd.Checkpointer(tmp_path, experiment="told", run="r", socket=daemon.socket) as ckpt:
        first = ckpt.save(state, step=1)
        assert first.record is None or first.done()
        first.result(timeout=60)
        again = ckpt.save(state, step=2)
        again.result(timeout=60)
        same = ckpt.save(state, step=2)
    for save, is_first in ((first, True), (again, False)):
        record = save.record
        assert record is not None
        assert record.size_bytes > 4 << 20
        assert (record.touched_bytes > 0) == is_first
        assert 0 < record.plan_s < record.blocked_s
        assert record.plan_s + record.stage_s == pytest.approx(record.blocked_s)
        assert record.persist_s > 0
        assert record.bytes_per_s > 0
        assert record.commit_s > 0
    assert same.record is None
    assert "committed step 2 in" in daemon.log_text()
    (run,) = [run for run in daemon.client().status().runs if run.experiment == "told"]
    assert (run.root, run.run, run.step) == (str(tmp_path), "r", 2)
    shown = run_ckptd("status", "--socket", str(daemon.socket), env=daemon.env).stdout
    assert re.search(r"told/r +step 2, \d+ s ago in ", shown)
