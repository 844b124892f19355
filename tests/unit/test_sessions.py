import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.sessions import Process, Sessions
from ckptd_proto.errors import PermissionDenied
from fakes.waiting import eventually


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_a_session_ends_the_moment_its_process_is_killed(
    child: subprocess.Popen[bytes],
) -> None:
    async with Sessions.open() as sessions:
        session = sessions.connect("c-1", Process.of_pid(child.pid, os.getuid()))
        ends: list[str] = []
        session.on_end(lambda: ends.append("told"))
        child.kill()
        with anyio.fail_after(30):
            await session.ended.wait()
        assert ends == ["told"]
        assert len(sessions) == 0


async def test_all_connections_of_a_process_are_one_session(
    child: subprocess.Popen[bytes],
) -> None:
    async with Sessions.open() as sessions:
        process = Process.of_pid(child.pid, os.getuid())
        first, second = sessions.connect("c-1", process), sessions.connect("c-2", process)
        assert first is second
        sessions.disconnect("c-1")
        assert sessions.of("c-2") is first


async def test_a_process_without_connections_stays_alive_to_us(
    child: subprocess.Popen[bytes],
) -> None:
    async with Sessions.open() as sessions:
        session = sessions.connect("c-1", Process.of_pid(child.pid, os.getuid()))
        sessions.disconnect("c-1")
        assert not session.ended.is_set()


async def test_a_later_process_with_the_same_pid_is_another_one(
    child: subprocess.Popen[bytes],
) -> None:
    earlier = replace(Process.of_pid(child.pid, os.getuid()), started=1)
    async with Sessions.open() as sessions:
        assert sessions.attend(earlier).ended.is_set()


def test_a_process_that_nobody_waits_for_has_ended(child: subprocess.Popen[bytes]) -> None:
    process = Process.of_pid(child.pid, os.getuid())
    assert not process.has_ended
    assert replace(process, started=1).has_ended
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Process.of_pid(child.pid, os.getuid()) == process
    assert process.has_ended
    child.wait()
    assert process.has_ended


_FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_its_last_thread() -> None:
    command = [sys.executable, "-c", _FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = Process.of_pid(child.pid, os.getuid())
        stat = Path(f"/proc/{child.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert not process.has_ended
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.has_ended


def test_who_cannot_look_does_not_take_a_process_for_dead(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process.of_pid(child.pid, os.getuid())

    def fails(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_text", fails)
    assert not process.has_ended


async def test_processes_in_an_unseen_pid_namespace_end_with_their_own_connection() -> None:
    async with Sessions.open() as sessions:
        one = sessions.connect("c-1", Process(pid=0, started=0, uid=0))
        other = sessions.connect("c-2", Process(pid=0, started=0, uid=0))
        sessions.disconnect("c-1")
        assert one.ended.is_set()
        assert not other.ended.is_set()


async def test_a_callback_for_an_ended_session_is_called_at_once() -> None:
    async with Sessions.open() as sessions:
        session = sessions.attend(Process(pid=2**22 - 1, started=1, uid=0))
        ends: list[str] = []
        session.on_end(lambda: ends.append("told"))
        assert ends == ["told"]


async def test_a_callback_taken_off_is_not_called_and_not_kept(
    child: subprocess.Popen[bytes],
) -> None:
    async with Sessions.open() as sessions:
        session = sessions.attend(Process.of_pid(child.pid, os.getuid()))
        ends: list[str] = []
        session.on_end(lambda: ends.append("kept"))
        remove = session.on_end(lambda: ends.append("taken off"))
        remove()
        remove()
        child.kill()
        with anyio.fail_after(30):
            await session.ended.wait()
        assert ends == ["kept"]


async def test_a_connection_that_did_not_pass_the_front_door_has_no_rights() -> None:
    async with Sessions.open() as sessions:
        with pytest.raises(PermissionDenied, match="front door"):
            sessions.of("unix:")


async def test_a_process_that_cannot_be_watched_is_known_until_its_connection_closes() -> None:
    unseen = Process(pid=0, started=-7, uid=0)
    async with Sessions.open() as sessions:
        session = sessions.connect("c-1", unseen)
        assert sessions.attend(unseen) is session
        sessions.disconnect("c-1")
        assert session.ended.is_set()
        assert sessions.attend(unseen).ended.is_set()
        assert len(sessions) == 0
