"""Which checkpoints stay once another is committed, and what removes them by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.tensors.images import Images
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.running import ckptd as run_ckptd
from fakes.waiting import eventually

Open = Callable[..., ckptd.Checkpointer]
LOSSES = [0.5, 0.2, 0.9, 0.4, 0.3]


@pytest.fixture
def open_run(daemon: Daemon, tmp_path: Path) -> Iterator[Open]:
    """Opens the run e/r."""
    opened: list[ckptd.Checkpointer] = []

    def open_it(retention: ckptd.Retention | None = None) -> ckptd.Checkpointer:
        opened.append(
            ckptd.Checkpointer(
                tmp_path, experiment="e", run="r", socket=daemon.socket, retention=retention
            )
        )
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def save(ckpt: ckptd.Checkpointer, step: int, loss: float | None = None) -> None:
    metrics = {} if loss is None else {"loss": loss}
    ckpt.save({"x": torch.full((8,), float(step))}, step=step, metrics=metrics).result(timeout=60)


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "e/r").glob("step-*"))


def leads_to(link: Path, step: int) -> bool:
    """Say whether *link* is there by now, and names that step."""
    return link.is_symlink() and link.readlink() == Path(f"step-{step}")


def run(daemon: Daemon, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_ckptd(*map(str, arguments), env=daemon.env)


def test_after_a_commit_only_what_the_rules_keep_stays(open_run: Open, tmp_path: Path) -> None:
    ckpt = open_run(ckptd.Retention(latest=2, best=1, monitor="loss"))
    for step, loss in enumerate(LOSSES):
        save(ckpt, step, loss)
    eventually(lambda: steps(tmp_path) == [1, 3, 4])
    assert ckpt.best() == ckpt.load({"x": torch.zeros(8)}, "best")
    eventually(lambda: leads_to(tmp_path / "e/r/best", 1))
    eventually(lambda: leads_to(tmp_path / "e/r/latest", 4))
    eventually(lambda: not list((tmp_path / "e/r/.attempts").iterdir()))


def test_without_rules_everything_stays(open_run: Open, tmp_path: Path) -> None:
    with closing(open_run(ckptd.Retention(latest=1))) as ckpt:
        save(ckpt, 1)
    ckpt = open_run()  # whoever saves last says what stays
    for step in (2, 3):
        save(ckpt, step)
    eventually(lambda: leads_to(tmp_path / "e/r/latest", 3))
    assert steps(tmp_path) == [1, 2, 3]


def test_a_job_that_only_loads_leaves_the_rules_alone(open_run: Open, tmp_path: Path) -> None:
    ckpt = open_run(ckptd.Retention(latest=1))
    save(ckpt, 1)
    open_run().load({"x": torch.zeros(8)})
    save(ckpt, 2)
    eventually(lambda: steps(tmp_path) == [2])


def test_rules_outlive_the_job_and_the_daemon(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run(ckptd.Retention(latest=1))
    save(ckpt, 1)
    save(ckpt, 2)
    eventually(lambda: steps(tmp_path) == [2])
    run_dir = tmp_path / "e/r"
    daemon.kill()  # first: it may be about to keep to the rules once more
    shutil.copytree(run_dir / "step-2", run_dir / "step-1")
    manifest = run_dir / "step-1/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"step": 1}))
    daemon.start()
    assert "removed 1 checkpoint" in run(daemon, "gc", tmp_path).stdout
    assert steps(tmp_path) == [2]


def test_a_pinned_step_stays_until_it_is_unpinned(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run(ckptd.Retention(latest=1))
    save(ckpt, 1)
    assert run(daemon, "pin", tmp_path / "e/r/step-1").returncode == 0
    assert "pinned" in run(daemon, "ls", tmp_path).stdout
    for step in (2, 3):
        save(ckpt, step)
    eventually(lambda: steps(tmp_path) == [1, 3])
    refused = run(daemon, "rm", tmp_path / "e/r/step-1")
    assert (refused.returncode, "unpin" in refused.stderr) == (4, True)
    assert run(daemon, "unpin", tmp_path / "e/r/step-1").returncode == 0
    save(ckpt, 4)
    eventually(lambda: steps(tmp_path) == [4])


def test_what_is_being_read_stays_until_that_has_ended(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run(ckptd.Retention(latest=1))
    save(ckpt, 1)
    found = ckpt.latest()
    assert found is not None
    reader = Images.open(found.path, found.uuid)
    save(ckpt, 2)
    eventually(lambda: leads_to(tmp_path / "e/r/latest", 2))
    told = [json.loads(line) for line in run(daemon, "gc", tmp_path, "--json").stdout.splitlines()]
    assert [(each["step"], each["goes"], each["why"]) for each in told] == [
        (1, False, "being read"),
        (2, False, "newest"),
    ]
    assert run(daemon, "rm", found.path).returncode == 4
    assert reader.read("index.json")
    del reader
    assert run(daemon, "gc", tmp_path).returncode == 0
    assert steps(tmp_path) == [2]


def test_what_a_reader_holds_is_readable_though_it_was_replaced(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run()
    save(ckpt, 1)
    found = ckpt.latest()
    assert found is not None
    reader = Images.open(found.path, found.uuid)
    again = ckpt.save({"x": torch.zeros(8)}, step=1, on_existing="replace").result(timeout=60)
    assert again.uuid != found.uuid
    assert reader.read("index.json")
    del reader
    assert run(daemon, "gc", tmp_path).returncode == 0
    assert not list((tmp_path / "e/r/.attempts").iterdir())


def test_a_dry_run_says_what_would_go_and_removes_nothing(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run()
    for step, loss in enumerate(LOSSES):
        save(ckpt, step, loss)
    rules = ["--latest", "1", "--best", "1", "--monitor", "loss"]
    done = run(daemon, "gc", tmp_path, *rules, "--dry-run")
    assert [line.split()[:2] for line in done.stdout.splitlines()[:-1]] == [
        ["would", "go"],
        ["stays", str(tmp_path / "e/r/step-1")],
        ["would", "go"],
        ["would", "go"],
        ["stays", str(tmp_path / "e/r/step-4")],
    ]
    assert "would remove 3 checkpoints" in done.stdout
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert "removed 3 checkpoints" in run(daemon, "gc", tmp_path, *rules).stdout
    assert steps(tmp_path) == [1, 4]


def test_the_newest_is_removed_only_by_force(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    ckpt = open_run()
    for step in (1, 2):
        save(ckpt, step)
    latest = tmp_path / "e/r/latest"
    eventually(lambda: leads_to(latest, 2))
    refused = run(daemon, "rm", latest)
    assert (refused.returncode, "--force" in refused.stderr) == (4, True)
    assert run(daemon, "rm", latest, "--force", "--dry-run").returncode == 0
    assert steps(tmp_path) == [1, 2]
    assert run(daemon, "rm", latest, "--force").returncode == 0
    assert (steps(tmp_path), latest.readlink()) == ([1], Path("step-1"))


def test_what_could_not_be_deleted_then_is_deleted_later(
    daemon: Daemon, open_run: Open, tmp_path: Path
) -> None:
    save(open_run(), 1)
    attempts = tmp_path / "e/r/.attempts"
    (attempts / "step-0.abcd.gone" / "deep").mkdir(parents=True)
    assert run(daemon, "gc", tmp_path).returncode == 0
    assert not list(attempts.iterdir())


def test_a_step_that_is_not_there_is_not_found(daemon: Daemon, tmp_path: Path) -> None:
    for command in ("rm", "pin"):
        assert run(daemon, command, tmp_path / "e/r/step-7").returncode == 3
    assert run(daemon, "rm", tmp_path / "e").returncode == 2


def test_best_needs_to_know_by_what(open_run: Open) -> None:
    ckpt = open_run()
    save(ckpt, 1, 0.5)
    with pytest.raises(errors.InvalidArgument, match="monitor"):
        ckpt.best()
