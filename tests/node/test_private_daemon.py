from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.running import ckptd, python
from fakes.waiting import eventually

STATUS = "import ckptd; print(ckptd.Client().status().pid)"

COMING = """
import sys, ckptd
from ckptd.link import autostart
ensure_running, turns = autostart.ensure_running, iter(range({turns}))
def ensured(socket):
    started = ensure_running(socket)
    if next(turns, None) is not None:
        print("there", flush=True)
        sys.stdin.readline()
    return started
autostart.ensure_running = ensured
"""
"""Of a client that waits, so many times, between a daemon that is there and its own coming."""


@pytest.fixture
def env(short_path: Path) -> Iterator[dict[str, str]]:
    """Of a client that may start a daemon; the daemon is ended with the test."""
    env = os.environ | {
        "CKPTD_SOCKET": f"{short_path}/p/d.sock",
        "CKPTD_STATE_DIR": f"{short_path}/state",
        "CKPTD_AUTOSTART": "1",
    }
    yield env
    ckptd("stop", env=env)


def version(directory: Path, number: str) -> str:
    """A PYTHONPATH on which ckptd is of another version."""
    info = directory / number / f"ckptd-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ckptd\nVersion: {number}\n")
    return str(info.parent)


@contextmanager
def coming(code: str, *, turns: int, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", COMING.format(turns=turns) + code]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_eight_racing_clients_start_exactly_one(env: dict[str, str], short_path: Path) -> None:
    racing = [
        subprocess.Popen([sys.executable, "-c", STATUS], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    answers = {client.communicate(timeout=50)[0] for client in racing}
    assert len(answers) == 1, answers
    assert all(client.returncode == 0 for client in racing)
    assert (short_path / "state" / "daemon.log").read_text().count("msg=ready") == 1


def test_it_is_nobodys_child_and_knows_nothing_of_the_job(env: dict[str, str]) -> None:
    secret = env | {"AWS_SECRET_ACCESS_KEY": "hush", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});" + STATUS
    pid = int(python(code, env=secret))
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[3]) not in {pid, os.getsid(0)}, "a session of its own, which it does not lead"
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"hush" not in environ
    assert b"OMP_NUM_THREADS" not in environ
    assert b"LANG=C.UTF-8" in environ
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


def test_it_ends_when_nobody_needs_it(env: dict[str, str]) -> None:
    pid = int(python(STATUS, env=env | {"CKPTD_IDLE_S": "1"}))
    eventually(lambda: not is_alive(pid))
    assert not Path(env["CKPTD_SOCKET"]).exists()


def test_one_that_ended_of_idleness_before_its_client_came_is_started_again(
    env: dict[str, str],
) -> None:
    with coming(STATUS, turns=1, env=env | {"CKPTD_IDLE_S": "1"}) as client:
        assert line(client) == "there\n"
        eventually(lambda: not Path(env["CKPTD_SOCKET"]).exists())
        pid, _ = client.communicate("\n", timeout=60)
    assert client.returncode == 0
    assert pid.strip().isdecimal()


def test_whoever_wins_one_that_ended_is_started_again_once_for_all(
    env: dict[str, str], short_path: Path
) -> None:
    with (
        coming(STATUS, turns=1, env=env) as first,
        coming(STATUS, turns=1, env=env) as second,
        coming(STATUS, turns=1, env=env) as third,
    ):
        racing = (first, second, third)
        assert [line(client) for client in racing] == ["there\n"] * 3
        ckptd("stop", env=env)
        eventually(lambda: not Path(env["CKPTD_SOCKET"]).exists())
        with ThreadPoolExecutor(3) as threads:
            said = set(threads.map(lambda client: client.communicate("\n", 60)[0], racing))
    assert [client.returncode for client in racing] == [0] * 3
    assert len(said) == 1, said
    assert (short_path / "state" / "daemon.log").read_text().count("msg=ready") == 2


def test_one_that_ends_again_is_started_no_third_time(
    env: dict[str, str], short_path: Path
) -> None:
    code = "try: ckptd.Client()\nexcept ckptd.errors.Unavailable as error: print(error)"
    with coming(code, turns=3, env=env) as client:
        for _ in range(2):
            assert line(client) == "there\n"
            ckptd("stop", env=env)
            eventually(lambda: not Path(env["CKPTD_SOCKET"]).exists())
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
        assert line(client).startswith("no daemon listens at ")
    assert (short_path / "state" / "daemon.log").read_text().count("msg=ready") == 2


def test_one_that_still_listens_while_it_ends_is_waited_for(env: dict[str, str]) -> None:
    path = Path(env["CKPTD_SOCKET"])
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as ending, ThreadPoolExecutor(1) as threads:
        ending.bind(str(path))
        ending.listen()

        def end() -> None:
            for _ in range(8):  # more than one try to connect takes
                ending.accept()[0].close()
            path.unlink()
            ending.close()

        ended = threads.submit(end)
        assert python(STATUS, env=env).strip().isdecimal()
        ended.result(30)


def test_it_stays_while_a_client_lives(env: dict[str, str]) -> None:
    code = f"{STATUS}; sys.stdout.flush(); sys.stdin.read(); print(ckptd.Client().status().pid)"
    client = subprocess.Popen(
        [sys.executable, "-c", f"import sys; {code}"],
        env=env | {"CKPTD_IDLE_S": "0.3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    pid = client.stdout.readline()
    # longer than the idle time, by the daemon's own clock
    eventually(lambda: b"\0" in Path(f"/proc/{int(pid)}/cmdline").read_bytes())
    python("import ckptd; c = ckptd.Client(); [c.status() for _ in range(300)]", env=env)
    assert client.communicate("", timeout=20)[0] == pid


def test_a_killed_one_is_replaced_within_the_call(env: dict[str, str]) -> None:
    code = f"""
import os, signal, ckptd
client = ckptd.Client()
first = client.status().pid
os.kill(first, {signal.SIGKILL:d})
print(first != client.status().pid)
"""
    assert python(code, env=env) == "True\n"


def test_without_leave_none_is_started(env: dict[str, str]) -> None:
    code = "import ckptd\ntry: ckptd.Client()\nexcept ckptd.errors.Unavailable as e: print(e)"
    said = python(code, env=env | {"CKPTD_AUTOSTART": "0"})
    assert said == f"no daemon listens at {env['CKPTD_SOCKET']}; start one with `ckptd serve`\n"


def test_one_that_cannot_start_says_why(env: dict[str, str], short_path: Path) -> None:
    with Daemon(short_path / "other") as other:
        env = env | {"CKPTD_STATE_DIR": str(other.state_dir)}
        code = "import ckptd\ntry: ckptd.Client()\nexcept ckptd.errors.FailedPrecondition as e: print(e)"
        assert f"(pid {other.pid}) already serves the state" in python(code, env=env)


def test_an_idle_private_daemon_of_another_version_is_replaced(
    env: dict[str, str], short_path: Path
) -> None:
    old = int(python(STATUS, env=env | {"PYTHONPATH": version(short_path, "0.0.1")}))
    new = int(python(STATUS, env=env))
    assert old != new
    eventually(lambda: not is_alive(old))


@pytest.mark.parametrize("theirs", ["0.0.1", "99.0"])
def test_any_other_daemon_of_another_version_is_an_error_that_says_what_to_run(
    theirs: str, short_path: Path
) -> None:
    daemon = Daemon(short_path / "d")
    daemon.settings["PYTHONPATH"] = version(short_path, theirs)
    with daemon:
        code = "import ckptd\ntry: ckptd.Client()\nexcept ckptd.errors.FailedPrecondition as e: print(e)"
        said = python(code, env=daemon.env | {"CKPTD_AUTOSTART": "1"})
        assert f"(pid {daemon.pid}) is version {theirs} and this client is" in said
        assert "run `ckptd stop`" in said
        by_name = code.replace("Client()", f"Client({str(daemon.socket)!r})")
        elsewhere = daemon.env | {"CKPTD_SOCKET": str(short_path / "none")}
        assert f"run `ckptd stop --socket {daemon.socket}`" in python(by_name, env=elsewhere)
        done = ckptd("stop", env=daemon.env)
        assert done.returncode == 0, "whatever its version"
