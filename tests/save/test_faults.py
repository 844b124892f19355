"""Disks that fail, crashes at the worst instant, and what a newer ckptd has left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.link.connection import Connection
from ckptd_proto import errors
from ckptd_proto.v1 import checkpoints_pb2
from fakes.daemon import Daemon, arena_of
from fakes.rank import Rank, content
from fakes.require_real import need_root
from fakes.tracing import KILLS, STALLS, tampered
from fakes.waiting import eventually

SIZE = (1 << 20) + 5
IMAGE = "__0_0.distcp"


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """One that tells at once of what a disk fails with."""
    with Daemon(short_path, persist_retry_s=0) as running:
        yield running


@pytest.fixture
def rank(daemon: Daemon, tmp_path: Path) -> Iterator[Rank]:
    with Rank(daemon.socket, tmp_path, 0, 1) as one:
        one.ask("join")
        yield one


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "e" / "r"


def stage(rank: Rank, sequence: int, step: int = 7, salt: str = "", **options: object) -> str:
    attempt: str = rank.ask("open", sequence=sequence, step=step, **options)[0]
    rank.ask("reserve", images=[(IMAGE, SIZE)])
    rank.ask("copy", salt=salt)
    return attempt


def seal(rank: Rank) -> None:
    rank.ask("seal", plan=[(IMAGE, SIZE)])


def save(rank: Rank, sequence: int, step: int = 7, salt: str = "", **options: object) -> str:
    attempt = stage(rank, sequence, step, salt, **options)
    seal(rank)
    assert rank.ask("watch")["state"] == "COMMITTED"
    return attempt


def checkpoints(daemon: Daemon, root: Path) -> list[checkpoints_pb2.Checkpoint]:
    request = checkpoints_pb2.ListCheckpointsRequest(root=str(root))
    return Connection.open(daemon.socket).call(lambda stubs: list(stubs.checkpoints.List(request)))


def listed(daemon: Daemon, root: Path) -> list[int]:
    return [each.step for each in checkpoints(daemon, root)]


def is_whole(step: Path, salt: str = "") -> bool:
    return (step / IMAGE).read_bytes() == content(salt + IMAGE, SIZE)


@pytest.mark.parametrize("call", ["fsync", "pwrite64", "ftruncate"])
def test_a_disk_that_fails_aborts_the_save_by_name_and_the_next_is_fine(
    daemon: Daemon, rank: Rank, run: Path, tmp_path: Path, call: str
) -> None:
    attempt = stage(rank, 0)
    image = run / ".attempts" / attempt / IMAGE
    with tampered(daemon.pid, f"{call}:error=EIO", on=[image]):
        seal(rank)
        outcome = rank.ask("watch")
    assert outcome["state"] == "ABORTED"
    assert (outcome["error"], str(image) in outcome["reason"]) == ("Unavailable", True)
    assert listed(daemon, tmp_path) == []
    assert {path.name for path in run.rglob("*") if path.is_file()} == {".fence.json"}
    save(rank, 1)
    assert is_whole(run / "step-7")


def test_a_replaced_step_has_no_instant_without_content(
    daemon: Daemon, rank: Rank, run: Path
) -> None:
    save(rank, 0)
    attempt = stage(rank, 1, salt="new", plan_hash="new", replace=True)
    with tampered(daemon.pid, f"renameat2:{KILLS}"):
        seal(rank)
        daemon.wait_killed()
    assert is_whole(run / "step-7")
    daemon.start()
    assert rank.ask("watch", attempt=attempt)["state"] == "COMMITTED"
    assert is_whole(run / "step-7", "new")
    eventually(lambda: not list((run / ".attempts").iterdir()))


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("arena", ["left", "lost"])
def test_a_crash_between_the_renames_of_a_replacement_loses_no_step(
    daemon: Daemon, rank: Rank, run: Path, tmp_path: Path, nth: int, arena: str
) -> None:
    """The filesystem cannot exchange two names: the old content steps aside for a moment."""
    save(rank, 0)
    attempt = stage(rank, 1, salt="new", plan_hash="new", replace=True)
    aside = run / ".attempts" / f"{attempt}.replaced"
    injections = ("renameat2:error=EINVAL", f"rename:{KILLS}:when={nth}")
    with tampered(daemon.pid, *injections, on=[run / "step-7", aside, aside.with_suffix("")]):
        seal(rank)
        daemon.wait_killed()
    is_new = (run / "step-7").exists() and is_whole(run / "step-7", "new")
    if arena == "lost":  # as by a power cut
        for slot in arena_of(daemon.state_dir).glob("*.slot"):
            slot.unlink()
    daemon.start()
    if arena == "left":
        assert rank.ask("watch", attempt=attempt)["state"] == "COMMITTED"
        assert is_whole(run / "step-7", "new")
    with Rank(daemon.socket, tmp_path, 0, 1, incarnation="resumed") as resumed:
        resumed.ask("join")
        assert listed(daemon, tmp_path) == [7]
    save(rank, 2, step=8)  # the run's next save tidies up
    assert is_whole(run / "step-7", "new" if is_new or arena == "left" else "")
    assert listed(daemon, tmp_path) == [7, 8]
    eventually(lambda: not list((run / ".attempts").iterdir()))


def test_an_attempt_whose_memory_was_lost_is_removed_and_those_of_other_daemons_are_not(
    daemon: Daemon, rank: Rank, run: Path
) -> None:
    save(rank, 0)  # so that only images are synced below
    attempt = stage(rank, 1, step=8)
    with tampered(daemon.pid, f"fsync:{STALLS}"):
        seal(rank)
        ours = run / ".attempts" / attempt
        eventually(ours.exists)
        theirs = ours.with_name("0-0123456789ab-0123456789abcdef")
        shutil.copytree(ours, theirs)
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait_killed()
    for slot in arena_of(daemon.state_dir).glob("*.slot"):
        slot.unlink()
    daemon.start()
    save(rank, 2, step=9)
    assert not ours.exists()
    assert theirs.exists()


def test_what_dead_ranks_had_staged_is_waited_for_by_whoever_lists_the_run(
    daemon: Daemon, tmp_path: Path
) -> None:
    client = daemon.client()
    before = client.status().sessions
    with Rank(daemon.socket, tmp_path, 0, 1) as rank, ThreadPoolExecutor(1) as threads:
        rank.ask("join")
        stage(rank, 0)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            seal(rank)
            assert listed(daemon, tmp_path) == []  # its rank lives, and knows
            rank.kill()
            eventually(lambda: client.status().sessions == before)
            listing = threads.submit(listed, daemon, tmp_path)
            assert not wait([listing], timeout=0.5).done
        assert listing.result(30) == [7]


def test_a_drain_that_runs_out_of_time_names_what_is_left_and_the_next_start_commits_it(
    short_path: Path, tmp_path: Path
) -> None:
    with Daemon(short_path, drain_s=0.5) as daemon, Rank(daemon.socket, tmp_path, 0, 1) as rank:
        rank.ask("join")
        stage(rank, 0)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            seal(rank)
            os.kill(daemon.pid, signal.SIGTERM)
            # it has ended; strace keeps the thread that was stuck
            eventually(lambda: "State:\tZ" in Path(f"/proc/{daemon.pid}/status").read_text())
        assert daemon.stop() == 0
        assert f"step 7 in {tmp_path}/e/r is staged and not committed" in daemon.log_text()
        assert not list(tmp_path.glob("e/r/step-*"))
        daemon.start()
        assert rank.ask("watch")["state"] == "COMMITTED"
        assert is_whole(tmp_path / "e" / "r" / "step-7")


@pytest.mark.parametrize("where", [".slot", ".head"])
def test_a_slot_of_a_newer_ckptd_is_left_alone_and_named(
    short_path: Path, tmp_path: Path, where: str
) -> None:
    with Daemon(short_path, arena_dir=short_path) as daemon:
        (arena,) = short_path.glob("ckptd-*-*")
        daemon.kill()
        newer = arena / "0123456789abcdef.slot"
        newer.write_bytes(bytes(1 << 20))
        newer.with_suffix(where).write_bytes(b"CKPTSLOT\3" + bytes(1 << 20))
        before = zlib.crc32(newer.read_bytes())
        daemon.start()
        assert f"{newer} was sealed in format 3 by a newer ckptd" in daemon.log_text()
        with Rank(daemon.socket, tmp_path, 0, 1) as rank:
            rank.ask("join")
            save(rank, 0)
        assert daemon.stop() == 0
        assert zlib.crc32(newer.read_bytes()) == before


def test_a_step_of_a_newer_ckptd_is_listed_as_that_and_not_touched(
    daemon: Daemon, rank: Rank, run: Path, tmp_path: Path
) -> None:
    for sequence, step in enumerate((7, 8)):
        save(rank, sequence, step)
    manifest = run / "step-8" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    older, newer = checkpoints(daemon, tmp_path)
    assert (older.step, older.latest, older.HasField("corruption")) == (7, True, False)
    assert (newer.step, newer.latest, newer.corruption.newer) == (8, False, True)
    assert newer.corruption.what.startswith("is written in format 2, and this ckptd knows 1")
    with pytest.raises(errors.Unimplemented, match=r"step-8 is written in format 2.*update"):
        rank.ask("open", sequence=2, step=8, plan_hash="other", replace=True)
    assert is_whole(run / "step-8")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """The root, seen where nothing can be written."""
    need_root()
    directory = tmp_path.with_name(tmp_path.name + "-read-only")
    directory.mkdir()
    subprocess.run(["mount", "--bind", tmp_path, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)
    shutil.rmtree(directory)


def test_a_place_that_cannot_be_written_can_be_read(
    daemon: Daemon, rank: Rank, read_only: Path
) -> None:
    with ckptd.Checkpointer(
        read_only.with_name(read_only.name.removesuffix("-read-only")),
        experiment="e",
        run="t",
        socket=daemon.socket,
    ) as ckpt:
        ckpt.save({"w": torch.arange(9)}, step=3).result(30)
    with pytest.raises(errors.PermissionDenied, match="make it writable"):
        ckptd.Checkpointer(read_only, experiment="e", run="t", socket=daemon.socket)
    with ckptd.Checkpointer(
        read_only, experiment="e", run="t", socket=daemon.socket, read_only=True
    ) as reader:
        state = {"w": torch.zeros(9, dtype=torch.int64)}
        assert reader.load(state).step == 3
        assert torch.equal(state["w"], torch.arange(9))
        for refused in (lambda: reader.save(state, step=4), lambda: reader.prepare(state)):
            with pytest.raises(errors.FailedPrecondition, match="is read-only"):
                refused()
    with pytest.raises(errors.NotFound, match="no directory"):
        ckptd.Checkpointer(
            read_only / "x", experiment="e", run="t", socket=daemon.socket, read_only=True
        )


def test_the_daemon_itself_lets_a_reader_save_nothing(daemon: Daemon, tmp_path: Path) -> None:
    with Rank(daemon.socket, tmp_path, 0, 1) as rank:
        rank.ask("join", read_only=True)
        for command, arguments in (("open", {"sequence": 0, "step": 1}), ("prepare", {"size": 9})):
            with pytest.raises(errors.FailedPrecondition, match="only to read"):
                rank.ask(command, **arguments)
        rank.ask("join")
        save(rank, 0)
