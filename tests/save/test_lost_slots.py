"""Memory that ranks write into while their daemon restarts, and what they can do to it: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.attempts import Attempt, Image, JobKey
from ckptd_daemon.save.places import Place
from ckptd_proto import errors
from fakes.daemon import Daemon, arena_of
from fakes.rank import Rank, content
from fakes.require_real import need_programs, need_root
from fakes.streams import playing
from fakes.tracing import STALLS, tampered
from fakes.training import opened
from fakes.waiting import eventually

MIB = 1 << 20
SIZE = 3 * MIB
OTHER = 54321
"""Another user than the daemon's."""


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Path]:
    """Shared memory that nobody else uses."""
    need_root()
    directory = tmp_path / "shm"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def used_bytes(shm: Path) -> int:
    """All that is allocated there, what has no name any more included."""
    found = os.statvfs(shm)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def counted(daemon: Daemon) -> int:
    return daemon.client().status().arena.used_bytes


def reserved(rank: Rank, sequence: int = 0, step: int = 1) -> Path:
    """Begin a save; return the slot's file."""
    rank.ask("open", sequence=sequence, step=step)
    slot = rank.ask("reserve", images=[("0", SIZE)])
    (path,) = Path("/dev/shm").glob(f"ckptd-*/{slot}.slot")
    return path


def restart(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


def staged_when_killed(daemon: Daemon, rank: Rank) -> Path:
    """Kill the daemon when all is staged and nothing written; return the slot's file."""
    slot = reserved(rank)
    rank.ask("copy")
    with tampered(daemon.pid, f"mkdir:{STALLS}"):
        rank.ask("seal", plan=[("0", SIZE)])
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.kill()
    return slot


@pytest.fixture
def rank(daemon: Daemon, tmp_path: Path) -> Iterator[Rank]:
    with Rank(daemon.socket, tmp_path, 0, 1) as one:
        one.ask("join")
        yield one


def test_memory_that_a_trainer_copies_to_while_its_daemon_restarts_is_counted_and_comes_back(
    short_path: Path, tmp_path: Path, shm: Path
) -> None:
    net = nn.Linear(1024, 1024)
    state = {"net": net, "optimizer": torch.optim.AdamW(net.parameters())}
    net(torch.randn(2, 1024)).sum().backward()
    state["optimizer"].step()
    with (
        Daemon(short_path, arena_dir=shm) as daemon,
        opened(daemon, tmp_path) as ckpt,
        playing() as stream,
    ):
        ckpt.save(state, step=1).result(30)
        stream.hold()
        save = ckpt.save(state, step=2)
        slot_bytes = counted(daemon)
        restart(daemon)
        assert used_bytes(shm) <= counted(daemon) + MIB  # heads beside
        assert counted(daemon) == slot_bytes
        stream.release()
        with pytest.raises(errors.Aborted, match="restarted before that was staged"):
            save.result(30)
        eventually(lambda: used_bytes(shm) < slot_bytes)  # with what is committed
        ckpt.save(state, step=3).result(30)
        assert used_bytes(shm) <= counted(daemon) + MIB
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert not [line for line in maps if str(shm) in line and "(deleted)" in line]


def test_memory_of_a_rank_that_dies_after_its_daemon_comes_back(daemon: Daemon, rank: Rank) -> None:
    slot = reserved(rank)
    restart(daemon)
    assert counted(daemon) == slot.stat().st_size
    assert daemon.client().status().arena.idle_slots == 0
    rank.kill()
    eventually(lambda: counted(daemon) == 0)


def test_memory_of_a_rank_that_is_dead_and_that_nobody_waits_for_comes_back(
    daemon: Daemon, rank: Rank
) -> None:
    slot = reserved(rank)
    restart(daemon)
    assert counted(daemon) == slot.stat().st_size
    rank.die_unseen()
    eventually(lambda: counted(daemon) == 0)
    assert not slot.exists()
    assert not slot.exists()


def test_memory_that_may_be_written_is_nobody_elses_until_its_rank_is_heard(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_bytes=4 * MIB) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
        Rank(daemon.socket, tmp_path, 0, 1, run="other") as other,
    ):
        rank.ask("join")
        other.ask("join")
        slot = reserved(rank)
        restart(daemon)
        other.ask("join")
        other.ask("open", sequence=0, step=1)
        with pytest.raises(errors.DeadlineExceeded, match=rf"rank 0 \(pid {rank.pid}\)"):
            other.ask("reserve", images=[("0", SIZE)], timeout_s=0.2)
        assert slot.exists()
        with pytest.raises(errors.Aborted, match="restarted"):
            rank.ask("seal", plan=[("0", SIZE)])
        assert other.ask("reserve", images=[("0", SIZE)])
        assert not slot.exists()


def test_a_rank_that_goes_on_to_its_next_save_has_its_memory_back(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_bytes=4 * MIB) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        rank.ask("join")
        reserved(rank)
        restart(daemon)
        rank.ask("join")
        reserved(rank, sequence=1, step=2)
        rank.ask("copy")
        rank.ask("seal", plan=[("0", SIZE)])
        assert rank.ask("watch")["state"] == "COMMITTED"


def test_a_rank_that_cuts_its_memory_fails_its_own_save(
    daemon: Daemon, rank: Rank, tmp_path: Path
) -> None:
    slot, pid = reserved(rank), daemon.pid
    rank.ask("copy")
    with tampered(pid, f"mkdir:{STALLS}"):
        rank.ask("seal", plan=[("0", SIZE)])
        os.truncate(slot, MIB)
    outcome = rank.ask("watch")
    assert (outcome["state"], outcome["error"]) == ("ABORTED", "DataLoss")
    assert not (tmp_path / "e/r/step-1").exists()
    assert reserved(rank, sequence=1, step=2) != slot
    rank.ask("copy")
    rank.ask("seal", plan=[("0", SIZE)])
    assert rank.ask("watch")["state"] == "COMMITTED"
    assert daemon.pid == pid


def test_who_removes_the_files_of_the_arena_ends_no_daemon_and_no_save(
    daemon: Daemon, tmp_path: Path
) -> None:
    pid = daemon.pid
    with opened(daemon, tmp_path) as ckpt:
        saved = ckpt.save({"w": torch.full((9,), 1.0)}, step=1).result(30)
        (saved.path / "__0_0.distcp").write_bytes(b"")  # so it comes from memory, or not at all
        arena = arena_of(daemon.state_dir)
        assert list(arena.glob("*.slot"))
        shutil.rmtree(arena)
        state = {"w": torch.zeros(9)}
        assert ckpt.load(state).step == 1
        assert float(state["w"][0]) == 1.0
        larger = {"w": torch.full((SIZE,), 2.0)}  # does not fit the slots that are there
        ckpt.save(larger, step=2).result(30)
    assert arena.stat().st_mode & 0o077 == 0
    assert daemon.pid == pid


def test_who_removes_memory_that_a_rank_still_writes_into_ends_no_daemon(
    daemon: Daemon, rank: Rank
) -> None:
    slot = reserved(rank)
    restart(daemon)
    shutil.rmtree(slot.parent)
    rank.kill()
    eventually(lambda: counted(daemon) == 0)


def maps(daemon: Daemon, slot: Path) -> bool:
    return str(slot) in Path(f"/proc/{daemon.pid}/maps").read_text()


@pytest.mark.parametrize("allow_uids", ["", OTHER])
def test_a_daemon_that_serves_other_users_too_maps_no_memory_that_somebody_could_cut(
    short_path: Path, tmp_path: Path, allow_uids: int | str
) -> None:
    with (
        Daemon(short_path, allow_uids=allow_uids) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        rank.ask("join")
        slot = reserved(rank)
        rank.ask("copy")
        assert maps(daemon, slot) is (not allow_uids)
        rank.ask("seal", plan=[("0", SIZE)])
        assert rank.ask("watch")["state"] == "COMMITTED"


def test_memory_that_was_cut_is_not_committed_after_a_restart(
    daemon: Daemon, rank: Rank, tmp_path: Path
) -> None:
    slot = staged_when_killed(daemon, rank)
    os.truncate(slot, SIZE)  # a page of it is missing
    daemon.start()
    assert rank.ask("watch")["state"] == "ABORTED"
    assert "step 1 of" in daemon.log_text()
    assert "staged in it, is lost" in daemon.log_text()
    assert not (tmp_path / "e/r/step-1").exists()
    reserved(rank, sequence=1, step=1)
    rank.ask("copy")
    rank.ask("seal", plan=[("0", SIZE)])
    assert rank.ask("watch")["state"] == "COMMITTED"


def test_what_a_rank_writes_where_older_daemons_looked_makes_no_file(
    daemon: Daemon, rank: Rank, tmp_path: Path
) -> None:
    slot = reserved(rank)
    job = JobKey("job", Place(tmp_path, "e", "r"), "i", 1, os.geteuid())
    image = Image("../../../forged", 10)
    attempt = Attempt("1-a", job, 1, 7, "p", replaces=False).with_seal(0, (image,), plan=(image,))
    forged = headers.encode(headers.sealed_by(0, attempt, (headers.Laid(image, 4096),)))
    with slot.open("r+b") as memory:
        memory.write(forged[:8] + (1).to_bytes(4, "little") + forged[12:])
    restart(daemon)
    rank.ask("join")
    reserved(rank, sequence=1, step=2)
    rank.ask("copy")
    rank.ask("seal", plan=[("0", SIZE)])
    assert rank.ask("watch")["state"] == "COMMITTED"
    assert not list(tmp_path.rglob("forged"))
    assert not (tmp_path / "e/r/step-7").exists()


def test_a_head_that_makes_no_sense_keeps_no_daemon_from_starting(
    daemon: Daemon, rank: Rank
) -> None:
    slot = staged_when_killed(daemon, rank)
    slot.with_suffix(".head").write_bytes(headers._packed(headers.KEPT, {"attempt": "1-a"}))
    daemon.start()
    assert f"{slot} cannot be taken up" in daemon.log_text()
    assert slot.exists()


@pytest.fixture
def shared(short_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon that serves another user below a root of his, and that root."""
    need_root()
    need_programs("setpriv")
    short_path.chmod(0o755)
    root = short_path / "theirs"
    root.mkdir()
    os.chown(root, OTHER, OTHER)
    with Daemon(short_path, allow_uids=OTHER, save_roots=root) as daemon:
        yield daemon, root


@pytest.fixture
def theirs(shared: tuple[Daemon, Path]) -> Iterator[Rank]:
    daemon, root = shared
    become = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    with Rank(daemon.socket, root, 0, 1, within=become) as rank:
        rank.ask("join")
        yield rank


def test_another_users_memory_is_read_and_not_mapped(
    shared: tuple[Daemon, Path], theirs: Rank
) -> None:
    daemon, root = shared
    slot = reserved(theirs)
    theirs.ask("copy")
    assert slot.stem not in Path(f"/proc/{daemon.pid}/maps").read_text()
    theirs.ask("seal", plan=[("0", SIZE)])
    assert theirs.ask("watch")["state"] == "COMMITTED"
    assert (root / "e/r/step-1/0").read_bytes() == content("0", SIZE)


def test_what_another_user_has_staged_is_finished_after_a_restart(
    shared: tuple[Daemon, Path], theirs: Rank
) -> None:
    daemon, root = shared
    slot = staged_when_killed(daemon, theirs)
    daemon.start()
    assert theirs.ask("watch")["state"] == "COMMITTED"
    assert slot.stem not in Path(f"/proc/{daemon.pid}/maps").read_text()
    assert (root / "e/r/step-1/0").read_bytes() == content("0", SIZE)


def test_what_another_user_has_staged_is_not_written_where_he_may_not_any_more(
    shared: tuple[Daemon, Path], theirs: Rank, tmp_path: Path
) -> None:
    daemon, root = shared
    staged_when_killed(daemon, theirs)
    (root / "e").rename(root / "before")
    (root / "e").symlink_to(tmp_path)
    daemon.start()
    eventually(lambda: "is given up" in daemon.log_text())  # it is taken up beside the start
    assert "leads elsewhere by a symbolic link" in daemon.log_text()
    eventually(lambda: daemon.client().status().attempts == ())
    assert not list(tmp_path.iterdir())
