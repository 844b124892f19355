"""The processes of the demo: a private daemon, and `torchrun` with its ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from ckptd import errors

RANKS = 4
RUN_LIMIT_S = 240.0  # of one `torchrun`; it takes a tenth of that
STOP_LIMIT_S = 40.0  # of the daemon: more than its drain_s
SHARED_MEMORY = Path("/dev/shm")

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a demo takes place: its folder, and the environment of its processes."""

    folder: Path
    environment: Mapping[str, str]


@contextmanager
def scene() -> Iterator[Scene]:
    """Make a folder and an arena of the demo's own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ckptd-demo-") as folder:
        arena = tempfile.mkdtemp(prefix="ckptd-demo-", dir=SHARED_MEMORY)
        leftovers = Path(folder, "tmp")  # killed processes cannot tidy up
        leftovers.mkdir()
        own = {
            "CKPTD_SOCKET": f"{folder}/ckptd.sock",
            "CKPTD_STATE_DIR": f"{folder}/state",
            "CKPTD_ARENA_DIR": arena,
            "CKPTD_AUTOSTART": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(leftovers),
        }
        theirs = {k: v for k, v in os.environ.items() if not k.startswith("CKPTD_")}
        try:
            yield Scene(Path(folder), {**theirs, **own})
        finally:
            shutil.rmtree(arena)


@contextmanager
def daemon(scene: Scene) -> Iterator[None]:
    """Serve the scene's socket while inside."""
    log = scene.folder / "daemon.log"
    command = [sys.executable, "-m", "ckptd_daemon"]
    with (
        log.open("wb") as errors_to,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors_to, text=True, env=scene.environment
        ) as process,
    ):
        try:
            assert process.stdout is not None  # by PIPE
            if not process.stdout.readline().startswith("ckptd ready"):
                raise errors.Unavailable(f"the demo's daemon did not start: {_last_words(log)}")
            yield
            process.terminate()
            process.wait(STOP_LIMIT_S)
        finally:
            process.kill()  # too late for one that has ended, right for any other


class Torchrun:
    """One launch of all ranks; iterate it for the events that they tell, until they end."""

    def __init__(self, scene: Scene, run: str, arguments: Mapping[str, object]) -> None:
        self._log = scene.folder / f"{run}.log"
        given = [f"--{name}={value}" for name, value in arguments.items()]
        launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        ranks = [f"--nproc-per-node={RANKS}", "-m", "ckptd.demo.train", f"--run-name={run}"]
        with self._log.open("ab") as log:
            self._launcher = psutil.Popen(
                [sys.executable, "-m", *launcher, *ranks, *given],
                stdout=subprocess.PIPE,
                stderr=log,
                env=scene.environment,
            )
        self._limit = threading.Timer(RUN_LIMIT_S, self.kill)
        self._limit.start()
        self._is_killed = False

    def __iter__(self) -> Iterator[Event]:
        for line in self._launcher.stdout:
            yield json.loads(line)
        if self._launcher.wait() != 0 and not self._is_killed:
            raise errors.Internal(f"the demo's training failed: {_last_words(self._log)}")

    def kill(self) -> None:
        """SIGKILL the launcher and every rank, with no time for a last word."""
        self._is_killed = True
        family = [self._launcher, *self._launcher.children(recursive=True)]
        for process in family:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue  # it has ended by itself
        psutil.wait_procs(family)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._limit.cancel()
        if self._launcher.poll() is None:
            self.kill()
        self._launcher.stdout.close()


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-25:]) or "it said nothing"
