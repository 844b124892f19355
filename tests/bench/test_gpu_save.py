"""The benchmark for machines with a GPU, played small without one: that it looks, and judges."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ckptd
from fakes.daemon import Daemon
from fakes.streams import playing

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_save.py"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_save", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    place = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_it_measures_all_that_it_judges_and_finds_the_bytes_right(
    script: ModuleType,
    daemon: Daemon,
    alone: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    with playing():
        trainer = script.Trainer(torch.device("cpu"), mib=1, width=128)
        found = script.measured(trainer, tmp_path, rounds=1, steps=3)
    assert min(found.blocked_s.values()) > 0
    assert min(found.slower.values()) > 0
    assert found.pinned > 0
    assert found.wrong == ()
    script.judged(found)
    assert "met    0 tensors are not what they were" in capsys.readouterr().out


def test_bytes_of_a_later_step_are_wrong(
    script: ModuleType, daemon: Daemon, alone: None, tmp_path: Path
) -> None:
    trainer = script.Trainer(torch.device("cpu"), mib=1, width=128)
    place = {"experiment": "e", "run": "r", "ranks": "self", "socket": daemon.socket}

    class Leaking(script.Ours):  # type: ignore[misc,name-defined]  # of a script
        def __call__(self, number: int) -> Leaking:
            trainer.step()
            super().__call__(number)
            return self

    with ckptd.Checkpointer(tmp_path, **place) as checkpoints:
        honest = script.Ours(trainer, checkpoints)
        assert list(script._wrong(trainer, honest, 1)) == []
        leaking = Leaking(trainer, checkpoints)
        wrong = set(script._wrong(trainer, leaking, 2))
    assert {"model.0.weight", "optimizer.state.0.weight.exp_avg"} <= wrong


def found(script: ModuleType, **otherwise: object) -> object:
    good = {
        "blocked_s": {"ckptd": 0.01, "dcp.async_save": 0.2},
        "slower": {"ckptd": 1.01, "dcp.async_save": 1.5},
        "pinned": 0.95,
        "wrong": (),
    }
    return script.Found(**(good | otherwise))


def test_all_targets_met_is_success(script: ModuleType) -> None:
    assert script.judged(found(script)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blocked_s", {"ckptd": 0.03, "dcp.async_save": 0.2}),
        ("slower", {"ckptd": 1.03, "dcp.async_save": 1.5}),
        ("pinned", 0.7),
        ("wrong", ("model.0.weight",)),
    ],
)
def test_any_target_missed_is_failure(
    script: ModuleType, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.judged(found(script, **{name: value})) == 1
    assert capsys.readouterr().out.count("MISSED") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_shows_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "no GPU is here: what saving from one costs is not shown\n"
