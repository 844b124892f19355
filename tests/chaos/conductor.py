"""Runs callers against a daemon while it kills, damages and changes what they depend on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from chaos.world import Thing, World
from ckptd import errors
from fakes.daemon import Daemon
from fakes.origin import Origin

CALLERS = 4
CALL_MAX_S = 45.0  # a caller's own patience is 15: what takes longer hangs
END_S = 60.0
SETTINGS = {
    "stall_s": 0.7,
    "connect_s": 2,
    "retries": 3,
    "linger_s": 0.3,
    "revalidate_s": 0.2,
    "failure_s": 0.2,
    "drain_s": 1,
    "cache_bytes": 260 << 20,
    "free_floor_bytes": 64 << 20,
    "max_bytes_per_s": 300_000_000,  # so that things happen in the middle of transfers
}
NEVER = {"Internal", "Unimplemented", "InvalidArgument", "AlreadyExists"}


class BrokenError(AssertionError):
    """The mix found something."""


class Caller:
    """A process of `chaos/caller.py`, and what it has said."""

    def __init__(self, daemon: Daemon, seed: str, files: Path) -> None:
        program = Path(__file__).with_name("caller.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), seed, str(files)],
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


class Conductor:
    """Draws what happens next, for as long as it is told."""

    def __init__(self, seed: str, directory: Path, origins: list[Origin]) -> None:
        self._seed = seed
        self._random = random.Random(f"{seed}/conductor")
        self._world = World(seed, origins)
        self._daemon = Daemon(directory / "d", **SETTINGS)
        self._files = directory / "files.json"
        self._callers: list[Caller] = []
        self._born = 0
        self._judged: Counter[str] = Counter()
        self._began = time.monotonic()
        self.schedule: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def run(self, duration_s: float) -> None:
        """Play for so long, then see whether everything is well again."""
        self._files.write_text(json.dumps([_spoken(thing) for thing in self._world.things]))
        events = {
            self._change: 16,
            self._sow: 8,
            self._kill_daemon: 3,
            self._restart_daemon: 1,
            self._kill_caller: 3,
            self._refuse: 2,
            self._clear: 2,
        }
        for thing in self._world.things:
            self._world.sow(thing, 0.2)
        try:
            self._daemon.start()
            while time.monotonic() - self._began < duration_s:
                while len(self._callers) < CALLERS:
                    self._start_caller()
                time.sleep(self._random.uniform(0.0, 0.4))
                self._random.choices([*events], events.values())[0]()
                self._judge()
            self._end()
        finally:
            for caller in self._callers:
                caller.kill()
            if self._daemon.process is not None:
                self._daemon.kill()

    def _note(self, text: str) -> None:
        self.schedule.append(f"{time.monotonic() - self._began:7.2f} {text}")

    def _start_caller(self) -> None:
        self._born += 1
        self._note(f"caller {self._born} comes")
        self._callers.append(Caller(self._daemon, f"{self._seed}/{self._born}", self._files))

    def _kill_caller(self) -> None:
        caller = self._random.choice(self._callers)
        self._note(f"caller {caller.seed} is killed")
        caller.kill()
        self._judge()
        self._callers.remove(caller)

    def _change(self) -> None:
        thing = self._random.choice([one for one in self._world.things if not one.is_stated])
        if self._world.change(thing):
            self._note(f"{thing.name} is to have version {len(thing.versions) - 1}")

    def _sow(self) -> None:
        thing, evil = (
            self._random.choice(self._world.things),
            self._random.choice([0.0, 0.2, 0.4, 0.8]),
        )
        self._world.sow(thing, evil)
        self._note(f"{thing.name} is {evil:.0%} evil")

    def _refuse(self) -> None:
        origin = self._random.choice(self._world.origins)
        self._note(f"origin {origin.port} refuses connections")
        origin.refuse()
        time.sleep(self._random.uniform(0.0, 0.5))
        origin.accept()

    def _clear(self) -> None:
        """Drop some blob that nobody holds."""
        try:
            blobs = self._daemon.client().blobs()
            if blobs:
                self._daemon.client().remove_blob(self._random.choice(blobs).key)
        except (errors.FailedPrecondition, errors.NotFound) as error:
            self._note(f"not cleared: {error}")

    def _kill_daemon(self) -> None:
        self._note("the daemon is killed")
        self._daemon.kill()
        if self._random.random() < 0.5:
            self._damage()
        self._daemon.start()
        self._note("the daemon is back")

    def _restart_daemon(self) -> None:
        self._note("the daemon is stopped")
        code = self._daemon.stop()
        if code != 0:
            raise BrokenError(f"the daemon stopped with {code}")
        self._daemon.start()

    def _damage(self) -> None:
        """Spoil a file of the cache that is not published."""
        partials = self._daemon.state_dir / "cache" / "partials"
        files = sorted(path for path in partials.glob("*/*") if path.name in {"data", "journal"})
        if not files:
            return
        path = self._random.choice(files)
        size = path.stat().st_size
        at = self._random.randrange(size) if size else 0
        path.chmod(0o600)
        if self._random.random() < 0.3:
            os.truncate(path, at)
            self._note(f"{path} is cut to {at} bytes")
            return
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x55]) if old else b"x")
        self._note(f"{path} is damaged at {at}")

    def _judge(self) -> None:
        """Look at everything that callers have said since."""
        for caller in self._callers:
            for report in caller.reports[self._judged[caller.seed] :]:
                self._judged[caller.seed] += 1
                self._judge_report(caller, report)
            if complaint := caller.complaint():
                raise BrokenError(complaint)

    def _judge_report(self, caller: Caller, report: dict[str, Any]) -> None:
        self.outcomes[report.get("error") or ("right" if report["sha256"] else "cancelled")] += 1
        if report["ended"] - report["began"] > CALL_MAX_S:
            raise BrokenError(f"caller {caller.seed} waited too long: {report}")
        thing = self._world[report["name"]]
        if error := report.get("error"):
            self._note(f"caller {caller.seed}: {report}")
            if error in NEVER or (error == "DataLoss" and not thing.is_stated):
                raise BrokenError(f"caller {caller.seed} got {report}")
            return
        began = float("-inf") if report["way"] == "offline" else report["began"]
        if report["sha256"] and not thing.had(report["sha256"], began, report["ended"]):
            raise BrokenError(f"WRONG BYTES: {thing} as caller {caller.seed} got it: {report}")

    def _end(self) -> None:
        """Now that all is well again, everything can be had."""
        self._note("the end")
        self._world.heal()
        for caller in self._callers:
            caller.stop()
        self._judge()
        self._callers.clear()
        client = self._daemon.client()
        for thing in self._world.things:
            file = thing.origin.file(thing.name)
            with client.open(thing.origin.url(thing.name), timeout=END_S) as path:
                if path.read_bytes() != file.data:
                    raise BrokenError(f"WRONG BYTES at the end: {thing}")
        if (code := self._daemon.stop()) != 0:  # it has also looked for tracebacks in the log
            raise BrokenError(f"the daemon stopped with {code}")


def _spoken(thing: Thing) -> dict[str, str | None]:
    """What callers are told of *thing*."""
    sha256 = thing.versions[0].sha256 if thing.is_stated else None
    return {"name": thing.name, "url": thing.origin.url(thing.name), "sha256": sha256}
