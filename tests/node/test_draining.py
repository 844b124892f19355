from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.running import ckptd
from fakes.waiting import eventually

FETCH = "import sys, ckptd; print(ckptd.fetch(sys.argv[1]).stat().st_size)"


def test_sigterm_leaves_what_does_not_fit_names_it_and_the_next_start_goes_on(
    short_path: Path,
) -> None:
    size = 4 << 20
    with Origin() as origin, Daemon(short_path, drain_s=0.2) as daemon:
        origin.put("model", b"x" * size)
        origin.hold()
        rank = subprocess.Popen(
            [sys.executable, "-c", FETCH, origin.url("model")],
            env=daemon.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert origin.held.wait(20)
        status = json.loads(ckptd("status", "--json", env=daemon.env).stdout)
        assert [flight["object"] for flight in status["flights"]] == [origin.url("model")]
        assert not status["idle"]
        assert "1 waiting" in ckptd("status", env=daemon.env).stdout

        assert daemon.stop() == 0
        assert f"left for the next start: 0 of {size} bytes" in daemon.log_text()
        origin.release()
        daemon.start()
        assert rank.communicate(timeout=30) == (f"{size}\n", "")


def test_sigterm_waits_for_what_fits(short_path: Path) -> None:
    with Origin() as origin, Daemon(short_path, drain_s=30) as daemon:
        origin.put("model", b"x" * (1 << 20))
        origin.hold()
        rank = subprocess.Popen(
            [sys.executable, "-c", FETCH, origin.url("model")],
            env=daemon.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert origin.held.wait(20)
        assert daemon.process is not None
        daemon.process.terminate()
        eventually(lambda: "msg=stopping" in daemon.log_text())
        origin.release()
        assert rank.communicate(timeout=30)[0] == f"{1 << 20}\n"
        assert daemon.process.wait(30) == 0
        assert "left for the next start" not in daemon.log_text()


def test_a_second_signal_ends_at_once(short_path: Path) -> None:
    with Origin() as origin, Daemon(short_path, drain_s=60) as daemon:
        origin.put("model", b"x" * (1 << 20))
        origin.hold()
        rank = subprocess.Popen(
            [sys.executable, "-c", FETCH, origin.url("model")],
            env=daemon.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert origin.held.wait(20)
        assert daemon.process is not None
        daemon.process.terminate()
        eventually(lambda: "msg=stopping" in daemon.log_text())
        daemon.process.terminate()
        assert daemon.process.wait(30) == 128 + 15
        rank.kill()
        rank.wait()
