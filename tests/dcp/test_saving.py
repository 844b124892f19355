from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

import ckptd
from ckptd_proto import errors
from fakes.daemon import Daemon, short_directory
from fakes.tracing import tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests here; each has a root of its own."""
    with short_directory() as directory, Daemon(directory, persist_retry_s=0) as one:
        yield one


@pytest.fixture(autouse=True)
def usual_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "root" / "e" / "r"


def state(value: float = 1.0) -> dict[str, Any]:
    weights = {"w": torch.full((4, 3), value), "scale": torch.tensor(value)}
    return {"model": weights, "step": int(value), "betas": (0.9, None)}


def loaded(path: Path, **options: Any) -> dict[str, Any]:
    found = state(0.0)
    dcp.load(found, **(options or {"checkpoint_id": path}))
    return found


def holds(path: Path, value: float) -> bool:
    found = loaded(path)
    return bool((found["model"]["w"] == value).all()) and found["step"] == int(value)


def cause(failure: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    """Return what torch has wrapped."""
    wrapped: BaseException = failure.value.failures[0][0]
    return wrapped


def test_a_save_is_committed_when_it_returns_and_stock_torch_loads_it(run: Path) -> None:
    dcp.save(state(7.0), storage_writer=ckptd.dcp.StorageWriter(run / "step-7"))
    assert (run / "step-7" / "manifest.json").exists()
    assert holds(run / "step-7", 7.0)


def test_a_checkpoint_id_given_to_torch_says_where(run: Path) -> None:
    writer = ckptd.dcp.StorageWriter()
    for step in (1, 2):
        dcp.save(state(step), checkpoint_id=run / f"step-{step}", storage_writer=writer)
    reader = ckptd.dcp.StorageReader()
    found = loaded(run, checkpoint_id=run / "step-1", storage_reader=reader)
    assert found["step"] == 1
    assert holds(run / "step-2", 2.0)


def test_the_checkpointer_finds_and_loads_what_was_saved_so(run: Path, daemon: Daemon) -> None:
    writer = ckptd.dcp.StorageWriter(run / "step-5", metrics={"loss": 0.5})
    dcp.save(state(5.0), storage_writer=writer)
    with ckptd.Checkpointer(run.parent.parent, experiment="e", run="r") as ckpt:
        found = state(0.0)
        checkpoint = ckpt.load(found)
    assert (checkpoint.step, dict(checkpoint.metrics)) == (5, {"loss": 0.5})
    assert found["step"] == 5
    assert found["betas"] == (0.9, None)


def test_what_happens_to_the_state_after_async_save_is_not_saved(run: Path) -> None:
    first, second = state(1.0), state(2.0)
    pending = ckptd.dcp.async_save(first, checkpoint_id=run / "step-1")
    assert pending.staging_completion.done()
    assert pending.upload_completion is pending
    writer = ckptd.dcp.StorageWriter(run / "step-2")
    future = dcp.async_save(second, storage_writer=writer)
    for each in (first, second):
        each["model"]["w"].zero_()
        each["step"] = 0
    assert set(pending.result(60).state_dict_metadata) == {
        "model.w", "model.scale", "step", "betas"
    }  # fmt: skip
    future.result()
    assert holds(run / "step-1", 1.0)
    assert holds(run / "step-2", 2.0)


@pytest.mark.parametrize("name", ["latest", "step-007", "step-x", "checkpoint_7"])
def test_a_directory_that_is_no_step_is_refused_with_an_example(run: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"step-<N>.*/step-100"):
        ckptd.dcp.StorageWriter(run / name)
    assert not ckptd.dcp.StorageWriter.validate_checkpoint_id(run / name)


def test_a_directory_with_too_few_above_it_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="too high"):
        ckptd.dcp.StorageWriter("/run/step-1")


def test_a_checkpoint_that_is_there_stays_unless_it_may_be_replaced(run: Path) -> None:
    path = run / "step-1"
    dcp.save(state(1.0), storage_writer=ckptd.dcp.StorageWriter(path))
    with pytest.raises(CheckpointException) as failure:
        dcp.save(state(2.0), storage_writer=ckptd.dcp.StorageWriter(path))
    assert isinstance(cause(failure), errors.AlreadyExists)
    with pytest.raises(errors.AlreadyExists, match="overwrite=True"):
        ckptd.dcp.async_save(state(2.0), checkpoint_id=path)
    assert holds(path, 1.0)
    dcp.save(state(3.0), storage_writer=ckptd.dcp.StorageWriter(path, overwrite=True))
    assert holds(path, 3.0)


def test_a_value_that_would_not_come_back_is_refused_by_its_key(run: Path) -> None:
    bad = {**state(), "args": argparse.Namespace(lr=1)}
    with pytest.raises(errors.InvalidArgument, match=r"'args' holds a argparse\.Namespace"):
        ckptd.dcp.async_save(bad, checkpoint_id=run / "step-1")
    with pytest.raises(CheckpointException) as failure:
        dcp.save(bad, storage_writer=ckptd.dcp.StorageWriter(run / "step-1"))
    assert "'args' holds a argparse.Namespace" in str(cause(failure))
    assert not (run / "step-1").exists()


class Halves(DefaultSavePlanner):
    """Saves tensors in half precision."""

    def create_local_plan(self) -> Any:
        self.state_dict = {
            name: value.half() if isinstance(value, torch.Tensor) else value
            for name, value in self.state_dict.items()
        }
        return super().create_local_plan()

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return super().transform_object(write_item, object)


def test_what_a_planner_of_ones_own_makes_of_the_state_is_saved(run: Path) -> None:
    writer = ckptd.dcp.StorageWriter(run / "step-1")
    dcp.save(state(1.0), storage_writer=writer, planner=Halves())
    pending = ckptd.dcp.async_save(state(1.0), checkpoint_id=run / "step-2", planner=Halves())
    pending.result(60)
    for step in (1, 2):
        reader = ckptd.dcp.StorageReader(run / f"step-{step}")
        held = reader.read_metadata().state_dict_metadata["model.w"]
        assert held.properties.dtype == torch.float16  # type: ignore[union-attr]  # a tensor
        assert holds(run / f"step-{step}", 1.0)
        assert loaded(run, storage_reader=reader)["betas"] == (0.9, None)


def test_a_planner_that_comes_after_staging_is_refused(run: Path) -> None:
    writer = ckptd.dcp.StorageWriter(run / "step-1")
    future = dcp.async_save(state(1.0), storage_writer=writer, planner=Halves())
    with pytest.raises(CheckpointException, match=r"ckptd\.dcp\.async_save"):
        future.result()


def test_a_checkpoint_id_that_comes_after_staging_must_be_the_same(run: Path) -> None:
    writer = ckptd.dcp.StorageWriter(run / "step-1")
    future = dcp.async_save(state(1.0), checkpoint_id=run / "step-2", storage_writer=writer)
    with pytest.raises(errors.InvalidArgument, match=r"step-1 before torch said .*step-2"):
        future.result()
    assert not (run / "step-2").exists()


def test_a_writer_stages_one_state_at_a_time(run: Path) -> None:
    writer = ckptd.dcp.StorageWriter(run / "step-1")
    writer.stage(state(1.0))
    with pytest.raises(errors.FailedPrecondition, match="one per save"):
        writer.stage(state(2.0))
    with pytest.raises(errors.InvalidArgument, match="async_checkpointer_type"):
        pickle.dumps(writer)


def test_torchs_cache_of_plans_changes_nothing(run: Path) -> None:
    for step in (1, 2, 3):
        planner = DefaultSavePlanner(enable_plan_caching=True)
        writer = ckptd.dcp.StorageWriter(run / f"step-{step}")
        dcp.save(state(step), storage_writer=writer, planner=planner)
    assert [holds(run / f"step-{step}", step) for step in (1, 2, 3)] == [True] * 3


def test_ranks_that_do_not_talk_cannot_commit_together(run: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="use_collectives"):
        ckptd.dcp.async_save(state(), checkpoint_id=run / "step-1", use_collectives=False)


def test_writers_and_stagers_of_others_are_refused(run: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="FileSystemWriter"):
        ckptd.dcp.async_save(state(), storage_writer=dcp.FileSystemWriter(run))
    with pytest.raises(errors.InvalidArgument, match="FileSystemWriter"):
        stager = dcp.FileSystemWriter(run)
        ckptd.dcp.async_save(state(), checkpoint_id=run / "step-1", async_stager=stager)
    with pytest.raises(errors.InvalidArgument, match="checkpoint_id"):
        ckptd.dcp.async_save(state())


def test_a_failure_that_nobody_asked_about_is_raised_by_the_next_save(
    run: Path, daemon: Daemon
) -> None:
    ckptd.dcp.async_save(state(), checkpoint_id=run / "step-1").result(60)
    with tampered(daemon.pid, "fsync:error=EIO"):
        told = ckptd.dcp.async_save(state(), checkpoint_id=run / "step-2")
        assert isinstance(told.exception(60), errors.Unavailable)
        untold = ckptd.dcp.async_save(state(), checkpoint_id=run / "step-3")
        with pytest.raises(errors.Unavailable, match="disk failed"):
            eventually(untold.done)
            ckptd.dcp.async_save(state(), checkpoint_id=run / "step-4")
    ckptd.dcp.async_save(state(5.0), checkpoint_id=run / "step-5").result(60)
    assert holds(run / "step-5", 5.0)


def test_what_torch_calls_a_stateful_is_asked_for_its_state(run: Path) -> None:
    net = torch.nn.Linear(2, 2)
    ckptd.dcp.async_save({"net": net}, checkpoint_id=run / "step-1").result(60)
    found = {"net": {"weight": torch.zeros(2, 2)}}
    dcp.load(found, storage_reader=ckptd.dcp.StorageReader(run / "step-1"))
    assert torch.equal(found["net"]["weight"], net.weight)


def test_the_bytes_of_torchs_own_pickles_are_kept_for_planners_that_make_them(run: Path) -> None:
    class Own(DefaultSavePlanner):
        def transform_object(self, write_item: Any, object: Any) -> Any:
            made = super().transform_object(write_item, object)
            return io.BytesIO(made.getvalue()) if isinstance(made, io.BytesIO) else made

    dcp.save(state(1.0), storage_writer=ckptd.dcp.StorageWriter(run / "step-1"), planner=Own())
    assert loaded(run, storage_reader=ckptd.dcp.StorageReader(run / "step-1"))["step"] == 1
