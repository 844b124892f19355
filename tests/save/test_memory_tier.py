"""What is committed stays in the node's memory when its trainers, or the daemon, have died."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.link.connection import Connection
from ckptd.saving import memory
from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.arena.slots import head_of
from ckptd_proto import errors
from ckptd_proto.v1 import node_pb2
from fakes.daemon import Daemon, arena_of
from fakes.rank import Rank, content
from fakes.running import python
from fakes.waiting import eventually

MIB = 1 << 20
SIZE = 3 * MIB
Ranks = Callable[..., Rank]
DYING = """
import os, sys, pathlib, ckptd
ckpt = ckptd.Checkpointer("{root}", experiment="e", run="r")
ckpt.save({{"note": 1}}, step=1).result(30)
print(ckptd.Client().status().pid, len(list(pathlib.Path("{arena}").glob("*.slot"))))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Ranks]:
    """Makes a rank of a job of one, or of more, that has joined."""
    with ExitStack() as stack:

        def make(daemon: Daemon, rank: int = 0, world_size: int = 1, **place: str) -> Rank:
            made = stack.enter_context(Rank(daemon.socket, tmp_path, rank, world_size, **place))
            made.ask("join")
            return made

        yield make


def reserved(rank: Rank, sequence: int, step: int, size: int = SIZE) -> str:
    """Begin a save; return the slot."""
    rank.ask("open", sequence=sequence, step=step)
    return str(rank.ask("reserve", images=[(str(rank.rank), size)]))


def saved(*ranks: Rank, sequence: int = 0, step: int = 1, size: int = SIZE) -> str:
    """Have all ranks of a job save; return the attempt."""
    attempt = ""
    for rank in ranks:
        attempt = rank.ask("open", sequence=sequence, step=step)[0]
        rank.ask("reserve", images=[(str(rank.rank), size)])
        rank.ask("copy", salt=str(step))
    for rank in ranks:
        plan = [(str(other.rank), size) for other in ranks] if rank.rank == 0 else None
        rank.ask("seal", plan=plan)
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    return attempt


def lent(daemon: Daemon, attempt: str) -> dict[str, bytes]:
    """Return the images of *attempt* that the daemon lends."""
    with memory.lent(Connection.open(daemon.socket), attempt) as copies:
        return {name: os.pread(copy.fd, SIZE, copy.offset) for name, copy in copies.items()}


def arena(daemon: Daemon) -> node_pb2.ArenaStatus:
    connection, request = Connection.open(daemon.socket), node_pb2.StatusRequest()
    return connection.call(lambda stubs: stubs.node.Status(request).arena)


def dead(daemon: Daemon, *ranks: Rank) -> None:
    """Kill the ranks; return when the daemon knows."""
    before = daemon.client().status().sessions
    for rank in ranks:
        rank.kill()
    eventually(lambda: daemon.client().status().sessions == before - len(ranks))


def slot_files(daemon: Daemon) -> list[Path]:
    return list(arena_of(daemon.state_dir).glob("*.slot"))


def test_a_job_that_comes_back_loads_from_memory(daemon: Daemon, tmp_path: Path) -> None:
    place = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place) as ckpt:
        path = ckpt.save({"w": torch.full((SIZE,), 3.0)}, step=3).result(30).path
    (path / "__0_0.distcp").unlink()
    state = {"w": torch.zeros(SIZE)}
    with ckptd.Checkpointer(tmp_path, **place) as ckpt:
        assert ckpt.load(state).step == 3
    assert (state["w"] == 3).all()


def test_what_dead_ranks_have_committed_is_lent_and_what_they_had_not_is_given_back(
    daemon: Daemon, joined: Ranks
) -> None:
    ranks = [joined(daemon, rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.ask("prepare", size=SIZE)
    attempt = saved(*ranks)
    for rank in ranks:
        reserved(rank, 1, step=2)
    dead(daemon, *ranks)
    eventually(lambda: arena(daemon).slots == 2)
    assert lent(daemon, attempt) == {name: content(f"1{name}", SIZE) for name in ("0", "1")}


def test_a_rank_that_returns_saves_into_the_memory_it_had_before_and_the_newest_stays(
    daemon: Daemon, joined: Ranks
) -> None:
    ranks = [joined(daemon, rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.ask("prepare", size=SIZE)
    older, newer = (saved(*ranks, sequence=n, step=n) for n in range(2))
    before = {path.stem for path in slot_files(daemon)}
    dead(daemon, *ranks)
    again = [joined(daemon, rank, 2, incarnation="later") for rank in range(2)]
    for rank in again:
        assert set(rank.ask("prepare", size=SIZE)) <= before
    assert lent(daemon, older).keys() == lent(daemon, newer).keys() == {"0", "1"}
    third = saved(*again, sequence=0, step=2)
    assert {path.stem for path in slot_files(daemon)} == before
    assert not lent(daemon, older)
    assert lent(daemon, newer).keys() == lent(daemon, third).keys() == {"0", "1"}


def test_while_there_is_room_another_run_leaves_it_alone(daemon: Daemon, joined: Ranks) -> None:
    rank = joined(daemon)
    attempt = saved(rank)
    dead(daemon, rank)
    saved(joined(daemon, run="other"))
    assert lent(daemon, attempt)


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_a_run_that_needs_the_memory_gets_it_and_the_budget_is_kept(
    short_path: Path, joined: Ranks, size: int
) -> None:
    with Daemon(short_path, arena_bytes=9 * MIB) as daemon:  # two slots of the first run's
        rank = joined(daemon)
        rank.ask("prepare", size=SIZE)
        older, newer = (saved(rank, sequence=n, step=n) for n in range(2))
        dead(daemon, rank)
        saved(joined(daemon, run="other"), size=size)
        assert not lent(daemon, older)  # the longest idle goes first
        assert bool(lent(daemon, newer)) == (size < SIZE)
        assert sum(path.stat().st_size for path in slot_files(daemon)) <= 9 * MIB


def test_a_run_without_room_takes_memory_that_fits_over_as_it_is(
    short_path: Path, joined: Ranks
) -> None:
    with Daemon(short_path, arena_bytes=4 * MIB, slots_per_rank=1) as daemon:
        rank = joined(daemon)
        saved(rank)
        (slot,) = slot_files(daemon)
        dead(daemon, rank)
        assert reserved(joined(daemon, run="other"), 0, step=1) == slot.stem


def test_memory_that_is_lent_is_not_taken_over(short_path: Path, joined: Ranks) -> None:
    with Daemon(short_path, arena_bytes=4 * MIB) as daemon:
        rank = joined(daemon)
        attempt = saved(rank)
        dead(daemon, rank)
        other = joined(daemon, run="other")
        other.ask("open", sequence=0, step=1)
        with memory.lent(Connection.open(daemon.socket), attempt) as copies:
            with pytest.raises(errors.DeadlineExceeded):
                other.ask("reserve", images=[("0", SIZE)], timeout_s=0.2)
            copy = copies["0"]
            assert os.pread(copy.fd, SIZE, copy.offset) == content("10", SIZE)
        assert other.ask("reserve", images=[("0", SIZE)])


def test_what_nobody_holds_and_is_corrupt_is_given_back(daemon: Daemon, joined: Ranks) -> None:
    rank = joined(daemon)
    attempt = saved(rank)
    dead(daemon, rank)
    memory.quarantine(Connection.open(daemon.socket), attempt, "0", "a test says so")
    eventually(lambda: arena(daemon).slots == 0)


def test_it_outlives_a_daemon_that_is_killed(daemon: Daemon, joined: Ranks) -> None:
    rank = joined(daemon)
    rank.ask("prepare", size=SIZE)
    attempts = [saved(rank, sequence=n, step=n) for n in range(2)]
    used_bytes = arena(daemon).used_bytes
    daemon.kill()
    daemon.start()
    for step, attempt in enumerate(attempts):
        assert lent(daemon, attempt) == {"0": content(f"{step}0", SIZE)}
    assert arena(daemon).used_bytes == used_bytes
    rank.ask("join")
    saved(rank, sequence=0, step=2)  # it counts anew, and finds its slots
    assert arena(daemon).used_bytes == used_bytes


def test_a_smaller_budget_after_a_restart_is_kept_and_the_newest_stays(
    short_path: Path, joined: Ranks
) -> None:
    with Daemon(short_path, arena_bytes=64 * MIB) as daemon:
        rank = joined(daemon)
        rank.ask("prepare", size=SIZE)
        older, newer = (saved(rank, sequence=n, step=n) for n in range(2))
        rank.kill()
        daemon.kill()
        daemon.settings["CKPTD_ARENA_BYTES"] = str(5 * MIB)
        daemon.start()
        eventually(lambda: arena(daemon).used_bytes <= 5 * MIB)
        assert lent(daemon, newer)
        assert not lent(daemon, older)


def test_a_step_that_was_removed_does_not_come_back_from_memory(
    daemon: Daemon, joined: Ranks, tmp_path: Path
) -> None:
    saved(joined(daemon))
    (tmp_path / "e/r/step-1").rename(tmp_path / "removed")
    daemon.kill()
    daemon.start()
    assert joined(daemon, run="other").ask("steps") == []
    assert not (tmp_path / "e/r/step-1").exists()


def test_a_slot_that_is_written_anew_when_the_daemon_dies_is_read_no_more(
    daemon: Daemon, joined: Ranks
) -> None:
    rank = joined(daemon)
    rank.ask("prepare", size=SIZE)
    older, newer = (saved(rank, sequence=n, step=n) for n in range(2))
    reserved(rank, 2, step=2)
    daemon.kill()
    daemon.start()
    assert not lent(daemon, older)
    assert lent(daemon, newer)


def test_a_daemon_killed_between_two_slots_of_a_commit_calls_it_committed(
    daemon: Daemon, joined: Ranks
) -> None:
    ranks = [joined(daemon, rank, 2) for rank in range(2)]
    attempt = saved(*ranks)
    daemon.kill()
    with head_of(slot_files(daemon)[0]).open("r+b") as head:  # before the daemon notes the commit
        assert head.read(8) == headers.KEPT
        head.seek(0)
        head.write(b"CKPTSLOT")
    daemon.start()
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    assert lent(daemon, attempt).keys() == {"0", "1"}


def test_a_daemon_that_stops_gives_all_of_it_back(daemon: Daemon, joined: Ranks) -> None:
    rank = joined(daemon)
    saved(rank)
    dead(daemon, rank)
    assert daemon.stop() == 0
    assert not arena_of(daemon.state_dir).exists()


def test_a_private_daemon_that_only_keeps_memory_is_idle_and_ends(
    short_path: Path, tmp_path: Path
) -> None:
    env = os.environ | {
        "CKPTD_SOCKET": str(short_path / "d.sock"),
        "CKPTD_STATE_DIR": str(short_path / "state"),
        "CKPTD_AUTOSTART": "1",
        "CKPTD_IDLE_S": "1",
    }
    code = DYING.format(root=tmp_path, arena=arena_of(short_path / "state"))
    pid, slots = python(code, env=env).split()
    assert int(slots) > 0
    eventually(lambda: not Path(f"/proc/{int(pid)}/exe").exists())
    assert not arena_of(short_path / "state").exists()
