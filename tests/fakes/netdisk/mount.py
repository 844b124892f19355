"""The test's end of a node that sees the shared directory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.require_real import need_programs, need_root
from fakes.waiting import eventually

_NAMESPACES = ("--net", "--mount")
_TESTS = Path(__file__).parents[2]


class Mount:
    """The test's end: what is *truth* to the test is *at* that place on the node."""

    def __init__(self, truth: Path, at: Path) -> None:
        need_root()
        need_programs("fusermount3", "unshare", "nsenter", "ip")
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            ["unshare", *_NAMESPACES, sys.executable, "-m", "fakes.netdisk.server", truth, at],
            env=os.environ | {"PYTHONPATH": str(_TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )
        assert self._line() == "mounted"

    @property
    def within(self) -> list[str]:
        """The command that runs another on the node."""
        return ["nsenter", f"--target={self.process.pid}", *_NAMESPACES, "--"]

    @contextmanager
    def fails(self, call: str, path: str = "*", *, done: bool = False) -> Iterator[Rule]:
        """While inside, such a *call* for such a *path* fails, though it may be *done*."""
        with self._ruled(call, path, errno.EIO, done) as rule:
            yield rule

    @contextmanager
    def stalls(self, call: str, path: str = "*", *, done: bool = False) -> Iterator[Rule]:
        """While inside, such a *call* for such a *path* waits, before or after it is *done*."""
        with self._ruled(call, path, 0, done) as rule:
            yield rule

    def lag(self, seconds: float) -> None:
        """Remember for so long which names there are, from now on."""
        self.ask("lag", seconds)

    def end(self) -> None:
        """What is on the node has no such directory any more."""
        self.process.kill()
        self.process.communicate()
        self.stderr.close()

    def ask(self, *command: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    @contextmanager
    def _ruled(self, *what: object) -> Iterator[Rule]:
        rule = Rule(self, self.ask("begin", *what))
        try:
            yield rule
        finally:
            self.ask("end", rule.id)

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline().strip()):
            self.stderr.seek(0)
            raise AssertionError(f"the filesystem has ended: {self.stderr.read()}")
        return line


@dataclass(frozen=True)
class Rule:
    """What befalls some calls on one node."""

    mount: Mount
    id: int

    @property
    def met(self) -> int:
        """How many calls it has befallen."""
        return int(self.mount.ask("met", self.id))

    def wait_met(self) -> None:
        """Wait until it has befallen a call."""
        eventually(lambda: self.met, timeout_s=30)


@contextmanager
def mounts(truth: Path, at: Path, count: int) -> Iterator[list[Mount]]:
    """Give so many nodes that see *truth* as *at*; both are made."""
    for directory in (truth, at):
        directory.mkdir()
    made: list[Mount] = []
    try:
        for _ in range(count):
            made.append(Mount(truth, at))  # noqa: PERF401  those that are made must end
        yield made
    finally:
        for mount in made:
            mount.end()
