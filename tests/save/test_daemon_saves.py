"""What the daemon promises of saves, tried with real processes that speak the protocol."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptd.link.connection import Connection, Stubs
from ckptd_proto import errors
from ckptd_proto.v1 import node_pb2
from fakes.daemon import Daemon
from fakes.rank import Rank, content
from fakes.tracing import KILLS, STALLS, tampered
from fakes.waiting import eventually

World = Callable[..., list[Rank]]
SIZE = (5 << 20) + 123


@pytest.fixture
def world(daemon: Daemon, tmp_path: Path) -> Iterator[World]:
    """Makes the ranks of a job, joined."""
    with ExitStack() as stack:

        def make(size: int, *, root: Path = tmp_path, **place: str) -> list[Rank]:
            ranks = [
                stack.enter_context(Rank(daemon.socket, root, rank, size, **place))
                for rank in range(size)
            ]
            for rank in ranks:
                rank.begin("join")
            for rank in ranks:
                rank.answer()
            return ranks

        yield make


def images_of(rank: int, size: int = SIZE) -> list[tuple[str, int]]:
    return [
        (f"__{rank}_0.distcp", size),
        *([(".metadata", 100), ("index.json", 0)] if rank == 0 else []),
    ]


def plan_of(world_size: int, size: int = SIZE) -> list[tuple[str, int]]:
    return [image for rank in range(world_size) for image in images_of(rank, size)]


def stage(
    ranks: list[Rank], sequence: int = 0, step: int = 7, size: int = SIZE, **options: object
) -> None:
    """All ranks copy, none seals."""
    for rank in ranks:
        rank.ask("open", sequence=sequence, step=step, **options)
    for rank in ranks:
        rank.ask("reserve", images=images_of(rank.rank, size))
        rank.ask("copy")


def seal(ranks: list[Rank], size: int = SIZE, **options: object) -> None:
    for rank in ranks:
        plan = plan_of(len(ranks), size) if rank.rank == 0 else None
        rank.ask("seal", plan=plan, **(options if rank.rank == 0 else {}))


def check_step(directory: Path, world_size: int, size: int = SIZE) -> None:
    """Every image is there, byte for byte, and the manifest knows it."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    for name, length in plan_of(world_size, size):
        assert (directory / name).read_bytes() == content(name, length)
        assert manifest["images"][name]["size_bytes"] == length


def test_what_all_ranks_staged_is_committed(world: World, tmp_path: Path) -> None:
    ranks = world(2)
    stage(ranks)
    seal(ranks, metrics={"loss": 0.5})
    assert ranks[1].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 2)
    assert not list((tmp_path / "e" / "r" / ".attempts").iterdir())


def test_what_is_persisted_leaves_the_page_cache_to_others(world: World, tmp_path: Path) -> None:
    (rank,) = world(1)
    stage([rank])
    seal([rank])
    assert rank.ask("watch")["state"] == "COMMITTED"
    with (tmp_path / "e" / "r" / "step-7" / "__0_0.distcp").open("rb") as image:
        with pytest.raises(BlockingIOError):
            os.preadv(image.fileno(), [bytearray(SIZE // 2)], 0, os.RWF_NOWAIT)
        assert image.read() == content("__0_0.distcp", SIZE)
        assert os.preadv(image.fileno(), [bytearray(100)], 0, os.RWF_NOWAIT) == 100


def test_a_rank_may_stage_while_its_last_save_persists(world: World, tmp_path: Path) -> None:
    (rank,) = world(1)
    slots = []
    for sequence in range(3):
        stage([rank], sequence, step=sequence)
        slots.append(rank.ask("reserve", images=images_of(0)))
        seal([rank])
    assert rank.ask("watch")["state"] == "COMMITTED"
    for step in range(3):
        check_step(tmp_path / "e" / "r" / f"step-{step}", 1)
    assert len(set(slots)) <= 2


def test_two_hundred_saves_leave_nothing_behind(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    (rank,) = world(1)
    rank.ask("prepare", size=1000)  # else it depends on the disk whether one slot is enough
    before = resources(daemon)
    for step in range(200):
        stage([rank], step, step, size=1000)
        seal([rank], size=1000)
        if step == 20:
            assert rank.ask("watch")["state"] == "COMMITTED"
            before = resources(daemon)
    assert rank.ask("watch")["state"] == "COMMITTED"
    eventually(
        lambda: all(now <= then for now, then in zip(resources(daemon), before, strict=True))
    )
    assert len(list((tmp_path / "e" / "r").glob("step-*"))) == 200
    assert not list((tmp_path / "e" / "r" / ".attempts").iterdir())


def test_slots_of_a_rank_that_has_gone_come_back(world: World, daemon: Daemon) -> None:
    ranks = world(2)
    stage(ranks)
    assert arena(daemon).slots == 2
    ranks[0].ask("leave")
    ranks[1].kill()
    eventually(lambda: arena(daemon).slots == 0)
    assert arena(daemon).used_bytes == 0


def test_a_rank_killed_before_it_sealed_aborts_the_attempt_by_name(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[0].ask("seal", plan=plan_of(2))
    ranks[0].begin("watch")
    ranks[1].kill()
    outcome = ranks[0].answer()
    assert (outcome["state"], outcome["error"]) == ("ABORTED", "Aborted")
    assert f"rank 1 (pid {ranks[1].pid})" in outcome["reason"]
    assert ranks[0].ask("roll") == [[1, ranks[1].pid]]
    assert not list(tmp_path.glob("e/r/step-*"))
    assert client(daemon).node.Status(node_pb2.StatusRequest()).saves == []


def test_a_rank_killed_after_it_sealed_aborts_nothing(world: World, tmp_path: Path) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[1].ask("seal")
    ranks[1].kill()
    ranks[0].ask("seal", plan=plan_of(2))
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 2)


def test_all_ranks_killed_after_they_sealed_lose_nothing(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks)
    with tampered(daemon.pid, f"fsync:{STALLS}"):
        seal(ranks)
        for rank in ranks:
            rank.kill()
        assert not (tmp_path / "e" / "r" / "step-7").exists()
    eventually((tmp_path / "e" / "r" / "step-7").exists)
    check_step(tmp_path / "e" / "r" / "step-7", 2)
    eventually(lambda: arena(daemon).idle_slots == arena(daemon).slots == 2)


def test_a_daemon_killed_while_it_persists_finishes_after_its_restart(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks, sequence=0, step=6)
    seal(ranks)
    ranks[0].ask("watch")  # from now on only images are synced before the rename
    stage(ranks, sequence=1, step=7)
    with tampered(daemon.pid, f"fsync:{STALLS}"):
        seal(ranks, metrics={"loss": math.nan})
        attempt = eventually(lambda: list(tmp_path.glob("e/r/.attempts/*/__1_0.distcp")))
        for rank in ranks:
            rank.kill()
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.kill()
    assert not (tmp_path / "e" / "r" / "step-7").exists()
    assert attempt[0].exists()
    daemon.start()
    eventually((tmp_path / "e" / "r" / "step-7").exists)
    check_step(tmp_path / "e" / "r" / "step-7", 2)
    eventually(lambda: arena(daemon).idle_slots == arena(daemon).slots == 2)
    assert not list((tmp_path / "e" / "r" / ".attempts").iterdir())


def test_a_daemon_killed_at_the_rename_commits_once(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(1)
    stage(ranks)
    with tampered(daemon.pid, f"rename:{KILLS}"):
        seal(ranks)
        assert daemon.process is not None
        daemon.process.wait(30)
        daemon.kill()
    daemon.start()
    eventually((tmp_path / "e" / "r" / "step-7" / "manifest.json").exists)
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 1)
    assert [path.name for path in (tmp_path / "e" / "r").glob("step-*")] == ["step-7"]


def test_live_ranks_follow_their_save_across_a_restart(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks)
    with tampered(daemon.pid, f"fsync:{STALLS}"):
        seal(ranks)
        for rank in ranks:
            rank.begin("watch")
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.kill()
    daemon.start()
    assert [rank.answer()["state"] for rank in ranks] == ["COMMITTED", "COMMITTED"]
    stage(ranks, sequence=1, step=8)
    seal(ranks)
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-8", 2)


def test_an_attempt_that_was_open_when_the_daemon_died_is_aborted(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[0].ask("seal", plan=plan_of(2))
    daemon.kill()
    daemon.start()
    outcome = ranks[0].ask("watch")
    assert outcome["state"] == "ABORTED"
    assert "restarted before rank 1 had staged step 7" in outcome["reason"]
    with pytest.raises(errors.Aborted, match="restarted"):
        ranks[1].ask("seal")
    eventually(lambda: arena(daemon).slots == 0)
    stage(ranks, sequence=1, step=7)
    seal(ranks)
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 2)


def test_a_stopped_daemon_finishes_what_is_staged(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = world(2)
    stage(ranks)
    seal(ranks)
    assert daemon.stop() == 0
    check_step(tmp_path / "e" / "r" / "step-7", 2)


def test_ranks_that_disagree_on_the_step_are_both_told(world: World, tmp_path: Path) -> None:
    ranks = world(2)
    ranks[0].ask("open", sequence=0, step=5)
    with pytest.raises(errors.InvalidArgument, match="rank 0 saves step 5 and rank 1 step 6"):
        ranks[1].ask("open", sequence=0, step=6)
    outcome = ranks[0].ask("watch")
    assert (outcome["state"], outcome["error"]) == ("ABORTED", "InvalidArgument")
    assert "rank 0 saves step 5 and rank 1 step 6" in outcome["reason"]
    assert not list(tmp_path.glob("e/r/step-*"))


def test_ranks_that_disagree_on_the_plan_are_told(world: World) -> None:
    ranks = world(2)
    ranks[0].ask("open", sequence=0, step=5, plan_hash="a")
    with pytest.raises(errors.InvalidArgument, match="has plan a and rank 1 has b"):
        ranks[1].ask("open", sequence=0, step=5, plan_hash="b")


def test_ranks_that_disagree_on_the_world_size_are_told(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    world(1)
    with (
        Rank(daemon.socket, tmp_path, 1, 2) as other,
        pytest.raises(errors.FailedPrecondition, match="2 ranks and rank 0 said 1"),
    ):
        other.ask("join")
    with (
        Rank(daemon.socket, tmp_path, 3, 2) as outside,
        pytest.raises(errors.InvalidArgument, match="rank 3 does not exist"),
    ):
        outside.ask("join")


def test_a_rank_cannot_be_two_live_processes(world: World, daemon: Daemon, tmp_path: Path) -> None:
    (first,) = world(1)
    with Rank(daemon.socket, tmp_path, 0, 1) as second:
        with pytest.raises(errors.FailedPrecondition, match=f"process {first.pid} is rank 0"):
            second.ask("join")
        first.kill()
        eventually(lambda: joined(second))
        stage([second])
        seal([second])
        assert second.ask("watch")["state"] == "COMMITTED"


def test_a_newer_incarnation_fences_the_older_for_good(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    (old,) = world(1, incarnation="old")
    stage([old])
    (new,) = world(1, incarnation="new")
    new.ask("open", sequence=0, step=7)
    outcome = old.ask("watch")
    assert outcome["state"] == "ABORTED"
    assert "newer incarnation (new)" in outcome["reason"]
    with pytest.raises(errors.FailedPrecondition, match="newer incarnation"):
        old.ask("open", sequence=1, step=8)
    daemon.kill()
    daemon.start()
    with pytest.raises(errors.FailedPrecondition, match="newer incarnation"):
        old.ask("open", sequence=2, step=8)
    stage([new], sequence=1)
    seal([new])
    assert new.ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 1)


def test_a_newer_incarnation_that_only_looks_fences_nobody(world: World, tmp_path: Path) -> None:
    (trainer,) = world(1, incarnation="trainer")
    stage([trainer])
    world(1, incarnation="reader")
    seal([trainer])
    assert trainer.ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 1)


def test_a_committed_step_is_returned_refused_or_replaced(world: World, tmp_path: Path) -> None:
    (rank,) = world(1)
    stage([rank])
    attempt = rank.ask("open", sequence=0, step=7)[0]
    seal([rank])
    rank.ask("watch")
    assert rank.ask("open", sequence=1, step=7) == ["", attempt]
    with pytest.raises(errors.AlreadyExists, match=r"step-7 is committed already, by attempt"):
        rank.ask("open", sequence=2, step=7, plan_hash="another")
    rank.ask("open", sequence=3, step=7, plan_hash="another", replace=True)
    rank.ask("reserve", images=images_of(0))
    rank.ask("copy", salt="new")
    rank.ask("seal", plan=plan_of(1))
    assert rank.ask("watch")["state"] == "COMMITTED"
    image = tmp_path / "e" / "r" / "step-7" / "__0_0.distcp"
    assert image.read_bytes() == content("new__0_0.distcp", SIZE)
    eventually(lambda: not list((tmp_path / "e" / "r" / ".attempts").iterdir()))


def test_a_directory_of_somebody_else_is_never_touched(world: World, tmp_path: Path) -> None:
    theirs = tmp_path / "e" / "r" / "step-7"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("mine")
    (rank,) = world(1)
    with pytest.raises(errors.AlreadyExists, match="is no checkpoint of ckptd"):
        rank.ask("open", sequence=0, step=7, replace=True)
    assert (theirs / "thesis.txt").read_text() == "mine"


def test_a_rank_that_goes_on_without_sealing_aborts_what_it_left(world: World) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[0].ask("seal", plan=plan_of(2))
    ranks[1].ask("open", sequence=1, step=8)
    outcome = ranks[0].ask("watch")
    assert outcome["state"] == "ABORTED"
    assert "went on without staging step 7" in outcome["reason"]


def test_images_that_are_not_the_plan_abort_the_attempt(world: World, tmp_path: Path) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[0].ask("seal", plan=[*plan_of(2), ("__2_0.distcp", 5)])
    with pytest.raises(errors.InvalidArgument, match="missing __2_0"):
        ranks[1].ask("seal")
    assert ranks[0].ask("watch")["state"] == "ABORTED"
    assert not list(tmp_path.glob("e/r/step-*"))


def test_every_call_may_be_repeated(world: World, tmp_path: Path) -> None:
    (rank,) = world(1)
    rank.ask("join")
    first = rank.ask("open", sequence=0, step=7)
    assert rank.ask("open", sequence=0, step=7) == first
    slot = rank.ask("reserve", images=images_of(0))
    assert rank.ask("reserve", images=images_of(0)) == slot
    rank.ask("copy")
    seal([rank])
    seal([rank])
    assert rank.ask("watch")["state"] == "COMMITTED"
    seal([rank])
    rank.ask("abort", reason="too late")
    check_step(tmp_path / "e" / "r" / "step-7", 1)


def test_an_aborted_attempt_tells_the_others_why(world: World) -> None:
    ranks = world(2)
    stage(ranks)
    ranks[1].ask("abort", reason="out of ideas")
    ranks[1].ask("abort", reason="again")
    with pytest.raises(errors.Aborted, match=r"rank 1 \(pid \d+\) gave up step 7: out of ideas"):
        ranks[0].ask("seal", plan=plan_of(2))


def test_an_unknown_attempt_is_aborted_in_words(world: World) -> None:
    (rank,) = world(1)
    outcome = rank.ask("watch", attempt="0-nobody")
    assert outcome["state"] == "ABORTED"
    assert "knows no attempt 0-nobody" in outcome["reason"]


def test_prepared_slots_are_the_ones_that_saves_use(world: World, daemon: Daemon) -> None:
    (rank,) = world(1)
    slots = rank.ask("prepare", size=SIZE + 8192)
    assert len(slots) == 2
    used = arena(daemon).used_bytes
    stage([rank])
    assert rank.ask("reserve", images=images_of(0)) in slots
    assert arena(daemon).used_bytes == used


def client(daemon: Daemon) -> Stubs:
    found: list[Stubs] = []
    Connection.open(daemon.socket).call(found.append)
    return found[0]


def arena(daemon: Daemon) -> node_pb2.ArenaStatus:
    return client(daemon).node.Status(node_pb2.StatusRequest()).arena


def resources(daemon: Daemon) -> tuple[int, int]:
    """Descriptors and slots; worker threads come and go with the load."""
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), arena(daemon).slots


def joined(rank: Rank) -> bool:
    try:
        return bool(rank.ask("join"))
    except errors.FailedPrecondition:
        return False
