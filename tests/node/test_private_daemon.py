from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.running import ckptd, python
from fakes.waiting import eventually

STATUS = "import ckptd; print(ckptd.Client().status().pid)"


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
        done = ckptd("stop", env=daemon.env)
        assert done.returncode == 0, "whatever its version"
