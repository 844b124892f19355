"""Ranks, their launcher and the daemon are killed, in every company; what was saved is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.link.connection import Connection
from ckptd_proto import errors
from fakes import ranks
from fakes.daemon import Daemon
from fakes.running import ckptd as command
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

PROGRAM = Path(__file__).parent / "programs" / "surviving.py"
STARTED_S = 100.0  # torch is slow to import on a busy machine

pytestmark = pytest.mark.timeout(300)


class Job:
    """Ranks that save, and leave notes of what came of it."""

    def __init__(self, root: Path, what: str, *how: str) -> None:
        self.root, self.what, self.how = root, what, how
        self.notes = root.with_name(f"{root.name}-notes")
        self.notes.mkdir()
        for rank in range(2):
            os.mkfifo(self.notes / f"go.{rank}")
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, env: dict[str, str], count: int = 1) -> None:
        self.processes = ranks.start(
            PROGRAM, self.root, self.what, self.notes, *self.how, ranks=count, env=env
        )

    def saved(self, count: int = 1) -> list[int]:
        """Have the ranks go on to save, and return their pids when `save()` has returned."""
        for rank in range(count):
            (self.notes / f"go.{rank}").write_text("")
        return [int(self.note("saved", rank)) for rank in range(count)]

    def note(self, word: str, rank: int = 0) -> str:
        file = self.notes / f"{word}.{rank}"
        eventually(lambda: file.exists() or self._check_alive(), timeout_s=STARTED_S)
        return file.read_text()

    def kill(self) -> list[str]:
        """SIGKILL all; return what they said."""
        killed, self.processes = self.processes, []
        for process in killed:
            process.kill()
        return [process.communicate()[0] for process in killed]

    def _check_alive(self) -> bool:
        for process in self.processes:
            if process.poll() not in (None, -9):
                raise AssertionError(process.communicate()[0])
        return False


@contextmanager
def job(root: Path, what: str, *how: str) -> Iterator[Job]:
    one = Job(root, what, *how)
    try:
        yield one
    finally:
        one.kill()


def is_kept_at_most(arena: ckptd.values.ArenaStatus) -> bool:
    """Say whether nobody has a slot: what is committed may lie there yet."""
    return arena.slots == arena.idle_slots


def loaded(daemon_socket: Path, root: Path, run: str, *, world_size: int) -> int:
    """Load all that the job saved as a world of one, and compare; return the step."""
    with ckptd.Checkpointer(
        root, experiment="e", run=run, ranks="self", socket=daemon_socket
    ) as ckpt:
        state = {"w": torch.zeros(100_000)} | {f"mine.{rank}": None for rank in range(world_size)}
        step = ckpt.load(state).step
    assert torch.equal(state["w"], torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    assert [state[f"mine.{rank}"] for rank in range(world_size)] == list(range(world_size))
    return step


@pytest.mark.parametrize("way", ["grouped", "ungrouped"])
def test_all_ranks_and_their_launcher_killed_once_save_has_returned_lose_nothing(
    daemon: Daemon, tmp_path: Path, way: str
) -> None:
    client = daemon.client()
    before = client.status().sessions
    started = Job(tmp_path / "root", "survive", way)
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(PROGRAM), str(started.root), "survive"),
            *(str(started.notes), way),
        ],
        env=ranks.environment(daemon.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: list(started.root.glob("e/survive/step-7")), timeout_s=STARTED_S)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            pids = started.saved(2)
            launcher.kill()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            launcher.wait()
            eventually(lambda: client.status().sessions == before)
            assert not list(started.root.glob("e/survive/step-8"))
        assert loaded(daemon.socket, started.root, "survive", world_size=2) == 8
    finally:
        launcher.kill()
        launcher.wait()


def test_ranks_killed_alone_while_their_launcher_lives_lose_nothing(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(tmp_path / "root", "survive") as started:
        started.start(daemon.env, 2)
        eventually(lambda: list(started.root.glob("e/survive/step-7")), timeout_s=STARTED_S)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            started.saved(2)
            started.kill()
        assert loaded(daemon.socket, started.root, "survive", world_size=2) == 8


def test_a_rank_that_waits_for_its_result_gets_it_from_the_daemons_next_life(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(tmp_path / "root", "survive") as started:
        started.start(daemon.env)
        eventually(lambda: list(started.root.glob("e/survive/step-7")), timeout_s=STARTED_S)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            started.saved()
            os.kill(daemon.pid, signal.SIGKILL)
        daemon.kill()
        assert not list(started.notes.glob("result.*"))
        daemon.start()
        assert started.note("result") == "8"
        assert loaded(daemon.socket, started.root, "survive", world_size=1) == 8


@pytest.fixture
def private(short_path: Path) -> Iterator[dict[str, str]]:
    """Where clients start daemons themselves."""
    env = os.environ | {
        "CKPTD_AUTOSTART": "1",
        "CKPTD_SOCKET": str(short_path / "d.sock"),
        "CKPTD_STATE_DIR": str(short_path / "state"),
    }
    yield env
    command("stop", env=env | {"CKPTD_AUTOSTART": "0"})


def private_pid(env: dict[str, str]) -> int:
    done = command("status", "--json", env=env | {"CKPTD_AUTOSTART": "0"})
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["pid"])


def test_a_waiting_rank_starts_its_private_daemon_again(
    private: dict[str, str], tmp_path: Path
) -> None:
    with job(tmp_path / "root", "survive") as started:
        started.start(private)
        eventually(lambda: list(started.root.glob("e/survive/step-7")), timeout_s=STARTED_S)
        first = private_pid(private)
        with tampered(first, f"fsync:{STALLS}"):
            started.saved()
            os.kill(first, signal.SIGKILL)
        assert started.note("result") == "8"
        assert private_pid(private) != first


def test_ranks_and_daemon_killed_together_leave_the_step_to_whoever_comes_next(
    private: dict[str, str], tmp_path: Path
) -> None:
    with job(tmp_path / "root", "survive") as started:
        started.start(private)
        eventually(lambda: list(started.root.glob("e/survive/step-7")), timeout_s=STARTED_S)
        first = private_pid(private)
        with tampered(first, f"fsync:{STALLS}"):
            started.saved()
            os.kill(first, signal.SIGKILL)
            started.kill()
        listed = command("ls", str(started.root), "--json", env=private)
        assert listed.returncode == 0, listed.stderr
        assert '"step": 8' in listed.stdout
        socket = Path(private["CKPTD_SOCKET"])
        assert loaded(socket, started.root, "survive", world_size=1) == 8


@pytest.mark.parametrize("what", ["between", "within"])
@pytest.mark.parametrize("way", ["grouped", "ungrouped"])
def test_a_rank_that_dies_while_it_saves_is_named_and_leaves_nothing(
    daemon: Daemon, tmp_path: Path, what: str, way: str
) -> None:
    client = daemon.client()
    with job(tmp_path / "root", what, way) as started:
        started.start(daemon.env, 2)
        assert f"rank 1 (pid {started.processes[1].pid}) died" in started.note("refused")
        started.processes[0].wait(30)
        eventually(lambda: is_kept_at_most(client.status().arena))
        assert not client.status().attempts
        with ckptd.Checkpointer(
            started.root, experiment="e", run=what, ranks="self", socket=daemon.socket
        ) as ckpt:
            assert [each.step for each in ckpt._catalog.committed()] == [7]
            assert ckpt.save({"w": torch.ones(9)}, step=8).result(30).step == 8


@contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_workers_forked_while_saves_are_on_their_way_hinder_nothing(
    daemon: Daemon, tmp_path: Path
) -> None:
    client = daemon.client()
    before = client.status().sessions
    with job(tmp_path / "root", "feed") as started:
        started.start(daemon.env)
        workers = [int(pid) for pid in started.note("workers").split()]
        assert client.status().sessions == before + 1
        started.processes[0].kill()
        with paused(workers):  # or they notice, sooner or later
            eventually(lambda: client.status().sessions == before)
            assert all(Path(f"/proc/{pid}/exe").exists() for pid in workers)
        eventually(lambda: is_kept_at_most(client.status().arena))
        assert started.kill() == [""]


def test_a_rank_that_may_not_join_again_is_told_why(daemon: Daemon, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with ckptd.Checkpointer(root, experiment="e", run="r", socket=daemon.socket) as ckpt:
        ckpt.save({"w": 1}, step=1).result(30)
        root.rename(tmp_path / "elsewhere")
        daemon.kill()
        daemon.start()
        with pytest.raises(errors.FailedPrecondition, match="both must see the same directory"):
            ckpt.save({"w": 1}, step=2)
        (tmp_path / "elsewhere").rename(root)
        assert ckpt.save({"w": 1}, step=2).result(30).step == 2
    assert Connection.open(daemon.socket).daemon.pid == daemon.pid
