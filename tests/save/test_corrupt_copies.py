"""A step whose files are not what was saved is known as that from then on, to every later life."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import ckptd
import ckptd.dcp
from ckptd.link.connection import Connection
from ckptd.saving.keeping import Address, suspect
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.jobs import job
from fakes.running import ckptd as run_ckptd
from fakes.waiting import eventually

IMAGE = "__0_0.distcp"
SIZE = 3 << 19  # floats: two chunks of an image


def save(ckpt: ckptd.Checkpointer, step: int, value: float | None = None) -> ckptd.Checkpoint:
    value = float(step) if value is None else value
    return ckpt.save({"w": torch.full((SIZE,), value)}, step=step).result(60)


def load(
    ckpt: ckptd.Checkpointer, which: str | int = "latest", **options: Any
) -> tuple[int, float]:
    state = {"w": torch.zeros(SIZE)}
    step = ckpt.load(state, which, **options).step
    return step, float(state["w"][-1])


def damage(daemon: Daemon, found: ckptd.Checkpoint) -> None:
    """Have no copy of it be good: the second chunk of the file is bad, and none is in memory."""
    daemon.forget(found.uuid)
    data = bytearray((found.path / IMAGE).read_bytes())
    data[5 << 20] ^= 1
    (found.path / IMAGE).write_bytes(data)


def run(daemon: Daemon, *arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    done = run_ckptd(*map(str, arguments), "--json", env=daemon.env)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "e/r").glob("step-*"))


@pytest.fixture
def bad(daemon: Daemon, tmp_path: Path) -> ckptd.Checkpoint:
    """Step 2 of e/r, after a life that has loaded step 1 instead."""
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 1)
        found = save(ckpt, 2)
    damage(daemon, found)
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt, on_corrupt="previous") == (1, 1.0)
    return found


def test_the_second_life_after_it_reads_nothing_of_it(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    (bad.path / IMAGE).unlink()  # whoever reads it fails
    caplog.clear()
    daemon.kill()
    daemon.start()
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (1, 1.0)
        latest = ckpt.latest()
        assert latest is not None
        assert latest.step == 1
    assert "step-2" not in caplog.text


def test_what_is_known_of_it_is_told_and_lies_beside_the_steps(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    record = json.loads((tmp_path / "e/r/.corrupt/step-2.json").read_bytes())
    assert (record["attempt"], record["file"], record["chunk"]) == (bad.uuid, IMAGE, 1)
    _, told = run(daemon, "ls", tmp_path)
    assert [(each["step"], each["latest"]) for each in told] == [(1, True), (2, False)]
    assert told[0]["corrupt"] is None
    assert (told[1]["corrupt"]["file"], told[1]["corrupt"]["chunk"]) == (IMAGE, 1)
    assert f"CORRUPT: {IMAGE} chunk 1" in run_ckptd("ls", str(tmp_path), env=daemon.env).stdout
    _, shown = run(daemon, "show", bad.path)
    assert shown[0]["corrupt"] == record
    assert (tmp_path / "e/r/latest").readlink() == Path("step-1")
    assert "step 2 of" in daemon.log_text()


def test_the_daemon_believes_nobody_before_it_has_read_it_back(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(daemon, tmp_path) as ckpt:
        found = save(ckpt, 1)
        for chunk in (None, 0, 1):
            connection = Connection.open(daemon.socket)
            assert suspect(connection, Address.at(found), found.uuid, IMAGE, chunk) is None
        assert not (tmp_path / "e/r/.corrupt").exists()
        assert load(ckpt) == (1, 1.0)


def test_a_later_life_saves_its_step_again_in_its_place(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    with job(daemon, tmp_path) as ckpt:
        assert save(ckpt, 2, 22.0).uuid != bad.uuid
        assert load(ckpt) == (2, 22.0)
        with pytest.raises(errors.AlreadyExists), job(daemon, tmp_path) as third:
            save(third, 2)


def test_the_same_life_is_not_given_the_corrupt_one_for_a_save_of_its_step(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(daemon, tmp_path) as ckpt:
        found = save(ckpt, 1)
        damage(daemon, found)
        with pytest.raises(errors.DataLoss):
            load(ckpt)
        again = save(ckpt, 1, 11.0)
        assert again.uuid != found.uuid
        daemon.forget(again.uuid)
        assert load(ckpt) == (1, 11.0)


def test_it_costs_no_good_step_its_place(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    latest = tmp_path / "e/r/latest"
    with job(daemon, tmp_path, ckptd.Retention(latest=1)) as ckpt:
        assert load(ckpt) == (1, 1.0)
        ckpt.save({"w": torch.full((SIZE,), 1.5)}, step=0).result(60)
        eventually(lambda: latest.readlink() == Path("step-0"))
        eventually(lambda: steps(tmp_path) == [0])
    eventually(lambda: not list((tmp_path / "e/r/.corrupt").iterdir()))


def test_it_is_not_the_best(daemon: Daemon, tmp_path: Path) -> None:
    rules = ckptd.Retention(best=2, monitor="loss")
    with job(daemon, tmp_path, rules) as ckpt:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
            ckpt.save(
                {"w": torch.full((SIZE,), float(step))}, step=step, metrics={"loss": loss}
            ).result(60)
        found = ckpt.best()
        assert found is not None
        assert found.step == 2
        damage(daemon, found)
        with pytest.raises(errors.DataLoss):
            load(ckpt, "best")
        assert load(ckpt, "best") == (1, 1.0)
        assert (tmp_path / "e/r/best").readlink() == Path("step-1")


def test_if_every_step_is_corrupt_nobody_begins_anew_by_mistake(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    with job(daemon, tmp_path) as ckpt:
        first = ckpt.latest()
        assert first is not None
        damage(daemon, first)
        with pytest.raises(errors.DataLoss, match="chunk 1"):
            load(ckpt)
        with pytest.raises(errors.DataLoss, match="every committed"):
            ckpt.latest()
        with pytest.raises(errors.DataLoss, match="step-2"):
            load(ckpt, 2)  # who names it has it read


def test_what_was_mended_counts_again(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    assert run(daemon, "verify", bad.path)[0] == 5
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (1, 1.0)
    damaged = bytearray((bad.path / IMAGE).read_bytes())
    damaged[5 << 20] ^= 1
    copy = tmp_path / "copy" / "step-2"
    copy.mkdir(parents=True)
    for path in bad.path.iterdir():
        data = bytes(damaged) if path.name == IMAGE else path.read_bytes()
        (copy / path.name).write_bytes(data)
    code, told = run(daemon, "verify", bad.path, "--repair", "--from", copy)
    assert (code, told[0]["absolved"], told[0]["mended"]) == (0, True, [IMAGE])
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (2, 2.0)


def test_what_verify_finds_is_noted_as_well(daemon: Daemon, tmp_path: Path) -> None:
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 1)
        found = save(ckpt, 2)
        (found.path / f"{IMAGE}.sums").unlink()
        code, told = run(daemon, "verify", tmp_path)
        assert (code, [each["noted"] for each in told]) == (5, [False, True])
        assert load(ckpt) == (1, 1.0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_torch_s_reader_finds_is_noted_if_a_daemon_runs_here(
    daemon: Daemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with job(daemon, tmp_path) as ckpt:
        found = save(ckpt, 1)
    damage(daemon, found)

    def read() -> None:
        with pytest.raises(CheckpointException, match="corrupt in chunk 1"):
            dcp.load({"w": torch.zeros(SIZE)}, storage_reader=ckptd.dcp.StorageReader(found.path))

    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "none.sock"))
    read()
    assert "nobody could note it" in caplog.text
    assert run(daemon, "ls", tmp_path)[1][0]["corrupt"] is None
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    read()
    assert run(daemon, "ls", tmp_path)[1][0]["corrupt"]["chunk"] == 1


def test_what_is_sound_after_all_counts_again_without_a_daemon(
    daemon: Daemon, tmp_path: Path, bad: ckptd.Checkpoint
) -> None:
    data = bytearray((bad.path / IMAGE).read_bytes())
    data[5 << 20] ^= 1
    (bad.path / IMAGE).write_bytes(data)
    daemon.kill()
    done = run_ckptd("verify", str(bad.path), env=daemon.env)
    assert (done.returncode, "counts again" in done.stdout) == (0, True)
    daemon.start()
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (2, 2.0)


def test_where_nothing_can_be_noted_the_load_goes_as_before_and_says_so(
    daemon: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 1)
        damage(daemon, save(ckpt, 2))
        (tmp_path / "e/r/.corrupt").write_text("a file of somebody else")
        for _ in range(2):
            assert load(ckpt, on_corrupt="previous") == (1, 1.0)
    assert "nobody could note it" in caplog.text
