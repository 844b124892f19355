from __future__ import annotations

import json
import subprocess
import sys

from fakes.daemon import Daemon

CKPTD = [sys.executable, "-m", "ckptd.cli"]


def test_status_tells_who_serves_and_where(daemon: Daemon) -> None:
    done = subprocess.run(
        [*CKPTD, "status", "--json"], env=daemon.env, capture_output=True, text=True, check=True
    )
    status = json.loads(done.stdout)
    assert status["pid"] == daemon.pid
    assert status["socket"] == str(daemon.socket)
    assert status["state_dir"] == str(daemon.state_dir)
    assert not status["private"]


def test_a_client_finds_the_daemon_again_after_it_was_killed(daemon: Daemon) -> None:
    client = daemon.client()
    assert client.status().pid == daemon.pid
    daemon.kill()
    daemon.start()
    assert client.status().pid == daemon.pid
