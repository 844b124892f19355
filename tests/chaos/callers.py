"""The processes that fetch, as the conductor sees them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fakes.daemon import Daemon

CALL_MAX_S = 45.0  # a caller's own patience is 15: what takes longer hangs


class Caller:
    """A process of `chaos/caller.py`, and what it has said."""

    def __init__(self, daemon: Daemon, seed: str, targets: Path) -> None:
        program = Path(__file__).with_name("caller.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), seed, str(targets)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=daemon.env,
            text=True,
        )
        self.seed = seed
        self.reports: list[dict[str, Any]] = []
        self.heard_at = time.monotonic()
        self._said: list[str] = []
        self._threads = [threading.Thread(target=work) for work in (self._listen, self._moan)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.heard_at = time.monotonic()
            self.reports.append(json.loads(line))

    def _moan(self) -> None:
        assert self._process.stderr is not None
        self._said += self._process.stderr

    def kill(self) -> None:
        """SIGKILL it, whatever it is doing."""
        self._process.kill()
        self._reap()

    def stop(self) -> None:
        """Let it finish its call."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CALL_MAX_S)
        finally:
            self.kill()

    def _reap(self) -> None:
        self._process.wait(10)
        for thread in self._threads:
            thread.join(10)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def complaint(self) -> str:
        """What is wrong with it, if anything is."""
        if self._process.poll() not in {None, 0, -9} or self._said:
            return f"caller {self.seed} ended with {self._process.poll()}: {''.join(self._said)}"
        if self._process.poll() is None and time.monotonic() - self.heard_at > CALL_MAX_S:
            return f"caller {self.seed} hangs since {CALL_MAX_S} s; it said {self.reports[-3:]}"
        return ""
