from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd.client import Client
from fakes.daemon import Daemon


def test_systemd_is_told_when_the_daemon_is_ready_and_when_it_stops(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short_path / "notify"))
        systemd.settimeout(20)
        daemon = Daemon(short_path)
        daemon.settings["NOTIFY_SOCKET"] = str(short_path / "notify")
        with daemon:
            assert systemd.recv(4096) == f"READY=1\nSTATUS=serving at {daemon.socket}".encode()
            assert daemon.stop() == 0
            assert systemd.recv(4096) == b"STOPPING=1"


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="not installed")
def test_the_daemon_serves_a_socket_that_systemd_hands_over(short_path: Path) -> None:
    path = short_path / "activated.sock"
    command = [sys.executable, "-m", "ckptd_daemon", f"--state-dir={short_path}/state"]
    systemd = subprocess.Popen(
        ["systemd-socket-activate", "-l", str(path), "-l", f"{path}.fds", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert systemd.stderr is not None
        assert systemd.stdout is not None
        for _ in range(2):
            assert "Listening on" in systemd.stderr.readline()
        client = Client(path)  # which makes it start
        status = client.status()
        assert (status.pid, status.socket) == (systemd.pid, str(path))
        assert systemd.stdout.readline() == f"ckptd ready unix:{path}\n"
    finally:
        systemd.terminate()
        systemd.communicate(timeout=20)
    assert systemd.returncode == 0
    assert path.is_socket(), "systemd's own, to be left where it is"
