from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.link.connection import Connection
from ckptd.saving import memory
from ckptd_proto import errors
from fakes import ranks
from fakes.daemon import Daemon, arena_of
from fakes.waiting import eventually

TIERS = Path(__file__).parent / "programs" / "tiers.py"
SIZE = 3 << 20  # floats: four chunks of an image


@pytest.fixture
def ckpt(daemon: Daemon, tmp_path: Path) -> Iterator[ckptd.Checkpointer]:
    with ckptd.Checkpointer(
        tmp_path / "root", experiment="e", run="r", socket=daemon.socket
    ) as opened:
        yield opened


def saved(ckpt: ckptd.Checkpointer, step: int) -> ckptd.Checkpoint:
    return ckpt.save({"w": torch.full((SIZE,), float(step))}, step=step).result(30)


def loaded(ckpt: ckptd.Checkpointer, which: int) -> torch.Tensor:
    state = {"w": torch.zeros(SIZE)}
    ckpt.load(state, which)
    return state["w"]


def damage(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"x" * (path.stat().st_size - (1 << 20)))


def test_what_lies_in_memory_is_not_read_from_disk(ckpt: ckptd.Checkpointer) -> None:
    path = saved(ckpt, 1).path
    (path / "__0_0.distcp").unlink()
    assert (loaded(ckpt, 1) == 1).all()


def test_a_tensor_filled_in_place_counts_as_changed(ckpt: ckptd.Checkpointer) -> None:
    saved(ckpt, 1)
    target = torch.zeros(SIZE)
    before = target._version
    ckpt.load({"w": target}, 1)
    assert target._version > before


def test_memory_that_is_not_what_was_saved_is_quarantined_and_the_file_is_read(
    daemon: Daemon, ckpt: ckptd.Checkpointer, caplog: pytest.LogCaptureFixture
) -> None:
    uuid = saved(ckpt, 1).uuid
    for slot in arena_of(daemon.state_dir).glob("*.slot"):
        damage(slot)
    assert (loaded(ckpt, 1) == 1).all()
    assert "__0_0.distcp" in caplog.text
    eventually(lambda: "corrupt in memory" in daemon.log_text())
    with memory.lent(Connection.open(daemon.socket), uuid) as copies:
        assert not copies


def test_memory_that_is_read_stays_what_it_is_and_is_used_again_afterwards(
    daemon: Daemon, ckpt: ckptd.Checkpointer
) -> None:
    uuid = saved(ckpt, 1).uuid
    connection = Connection.open(daemon.socket)
    with memory.lent(connection, uuid) as copies:
        copy = copies["__0_0.distcp"]
        before = os.pread(copy.fd, 4 * SIZE, copy.offset)
        for step in (2, 3, 4):
            saved(ckpt, step)
        assert os.pread(copy.fd, 4 * SIZE, copy.offset) == before
    for step in (5, 6, 7):
        saved(ckpt, step)
    with memory.lent(connection, uuid) as copies:
        assert not copies


def test_lent_memory_can_only_be_read(daemon: Daemon, ckpt: ckptd.Checkpointer) -> None:
    uuid = saved(ckpt, 1).uuid
    with memory.lent(Connection.open(daemon.socket), uuid) as copies, pytest.raises(OSError):
        os.pwrite(copies["__0_0.distcp"].fd, b"x", 0)


def test_the_newest_checkpoint_stays_in_memory_while_the_next_is_staged(
    daemon: Daemon, ckpt: ckptd.Checkpointer
) -> None:
    ckpt.prepare({"w": torch.zeros(SIZE)})
    uuids = [saved(ckpt, step).uuid for step in (1, 2, 3)]
    connection = Connection.open(daemon.socket)
    with memory.lent(connection, uuids[1]) as older, memory.lent(connection, uuids[2]) as newer:
        assert older
        assert newer


def test_with_no_good_copy_of_a_step_the_one_before_is_loaded_if_allowed(
    daemon: Daemon, ckpt: ckptd.Checkpointer
) -> None:
    for step in (1, 2):
        damage(saved(ckpt, step).path / "__0_0.distcp") if step == 2 else saved(ckpt, step)
    for slot in arena_of(daemon.state_dir).glob("*.slot"):
        damage(slot)
    with pytest.raises(errors.DataLoss, match="step-2"):
        loaded(ckpt, 2)
    state = {"w": torch.zeros(SIZE)}
    assert ckpt.load(state, on_corrupt="previous").step == 1
    assert (state["w"] == 1).all()


def test_with_no_good_step_at_all_the_loss_names_the_first(
    daemon: Daemon, ckpt: ckptd.Checkpointer
) -> None:
    for step in (1, 2):
        damage(saved(ckpt, step).path / "__0_0.distcp")
    for slot in arena_of(daemon.state_dir).glob("*.slot"):
        damage(slot)
    with pytest.raises(errors.DataLoss, match="step-2"):
        ckpt.load({"w": torch.zeros(SIZE)}, on_corrupt="previous")


@pytest.mark.parametrize(
    ("on_corrupt", "said"), [("previous", "loaded 1 True"), ("error", "lost True")]
)
def test_ranks_agree_on_the_step_though_only_one_of_them_needs_what_is_bad(
    daemon: Daemon, tmp_path: Path, on_corrupt: str, said: str
) -> None:
    started = ranks.start(TIERS, tmp_path, on_corrupt, ranks=2, env=daemon.env)
    for text in ranks.outputs(started):
        assert text.splitlines()[-1] == said, text
