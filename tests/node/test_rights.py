from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.running import ckptd, python

NOBODY = 65534
BECOME = """
import ckptd.client, ckptd.link.descriptors, os
ckptd.__version__  # loads what it needs
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

STATUS = """
import ckptd
from ckptd import errors
try:
    print(ckptd.Client().status().pid)
except errors.PermissionDenied as error:
    print("denied:", error)
"""
DESCRIPTOR = """
import os
from pathlib import Path
from ckptd.link import descriptors
from ckptd import errors
try:
    descriptors.receive(Path(os.environ["CKPTD_SOCKET"]), "guess")
except errors.PermissionDenied as error:
    print("denied:", error)
"""


def as_nobody(code: str, daemon: Daemon) -> str:
    daemon.directory.chmod(0o755)
    return python(BECOME.format(uid=NOBODY) + code, env=daemon.env)


def test_the_kernel_keeps_other_users_from_the_socket(daemon: Daemon) -> None:
    assert "denied: user 65534 may not connect" in as_nobody(STATUS, daemon)


def test_another_user_who_gets_to_the_socket_is_refused_in_words(daemon: Daemon) -> None:
    daemon.socket.chmod(0o666)
    answer = as_nobody(STATUS, daemon)
    assert answer.startswith("denied: this daemon serves user 0 and not you; start your own")
    assert "refused uid=65534" in daemon.log_text().replace("msg=", "")


def test_another_user_gets_no_descriptor(daemon: Daemon) -> None:
    daemon.socket.with_name("d.sock.fds").chmod(0o666)
    assert as_nobody(DESCRIPTOR, daemon).startswith("denied: no descriptor waits")


def test_a_configured_user_is_served_but_may_not_stop_the_daemon(short_path: Path) -> None:
    code = STATUS.replace(".status().pid", ".stop()")
    with Daemon(short_path, allow_uids=NOBODY) as daemon:
        assert as_nobody(STATUS, daemon).strip() == str(daemon.pid)
        assert "denied: only user 0, whose daemon this is" in as_nobody(code, daemon)


def test_a_private_directory_made_by_someone_else_is_refused(short_path: Path) -> None:
    uid = 54321  # a user of this test alone, for the path is a fixed one
    directory = Path(f"/tmp/ckptd-{uid}")
    directory.mkdir(mode=0o700)
    try:
        done = python_as(uid, short_path)
    finally:
        directory.rmdir()
    assert f"{directory} is not a directory of ours alone" in done


def python_as(uid: int, home: Path) -> str:
    home.chmod(0o777)
    env = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | {"HOME": str(home)}
    return python(BECOME.format(uid=uid) + STATUS, env=env)


def test_a_state_directory_one_may_not_write_is_refused_in_words(short_path: Path) -> None:
    done = ckptd("serve", f"--socket={short_path}/s", "--state-dir=/proc/nowhere", env=os.environ)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "cannot create /proc/nowhere" in done.stderr
