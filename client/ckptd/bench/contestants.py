"""Who takes part: ckptd, and what users would pick instead, as far as it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Protocol, TextIO

from ckptd.bench import processes, workers
from ckptd.bench.figures import OURS, Reading
from ckptd.bench.node import Node
from ckptd.bench.processes import FailedError, Memory, await_readable, last_line, version_of
from ckptd.bench.worker import Job

FILES_AT_ONCE = "16"
CONNECTIONS = "16"
CUTOFF = "--multi-thread-cutoff=16M"  # by default, a stream for each 250 MB only


@dataclass(frozen=True, slots=True)
class Run:
    """One fetch that is done, its results still there."""

    reading: Reading
    paths: Mapping[str, Path]


class Contestant(Protocol):
    """Fetches what a job says."""

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    @property
    def version(self) -> str:
        """As it says itself."""
        ...

    def fetched(self, job: Job) -> AbstractContextManager[Run]:
        """Fetch and sync on the clock; the results are gone after the block.

        Raises `FailedError` with its last words if it fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A program; its start is part of what it takes."""

    name: str
    version: str
    steps: tuple[Callable[[Job], list[str]], ...]
    """The command lines, one after the other."""

    @contextmanager
    def fetched(self, job: Job) -> Iterator[Run]:
        """Run it, then sync what it wrote."""
        paths = {name: job.path(name) for name in job.names}
        commands = [step(job) for step in self.steps]  # they may write a list, off the clock
        used_s, peak_bytes = 0.0, 0
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            began_s = time.perf_counter()
            for command in commands:
                step_s, memory = run_program(command, said)
                used_s += step_s
                peak_bytes = max(peak_bytes, memory.peak_bytes)
            own_s = time.thread_time()
            for path in paths.values():
                processes.sync(path)
            used_s += time.thread_time() - own_s
            wall_s = time.perf_counter() - began_s
        yield Run(_reading(wall_s, used_s, peak_bytes), paths)


def run_program(command: list[str], said: TextIO) -> tuple[float, Memory]:
    """Run a program; return the CPU seconds it took, and its memory. Raises `FailedError`."""
    environment = os.environ | {"RCLONE_CONFIG": os.devnull}  # nobody's own settings
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
    )
    memory = Memory(process.pid)
    pidfd = os.pidfd_open(process.pid)
    try:
        if not await_readable(pidfd, memory.look, workers.LIMIT_S):
            process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        os.close(pidfd)
    if process.returncode != 0:
        raise FailedError(f"exit code {process.returncode}; its last words: {last_line(said)}")
    return usage.ru_utime + usage.ru_stime, memory


@dataclass(frozen=True, slots=True)
class Library:
    """A library; its process runs already, as that of a user would."""

    name: str
    version: str

    @contextmanager
    def fetched(self, job: Job) -> Iterator[Run]:
        """Ask a new process for it."""
        environment = dict(os.environ)
        if job.ca_file:
            environment["SSL_CERT_FILE"] = job.ca_file
        with workers.working(self.name, environment) as worker:
            worker.ask(job)
            report = worker.answer()
            paths = {name: Path(path) for name, path in report.paths.items()}
            yield Run(_reading(report.wall_s, report.cpu_s, worker.memory.peak_bytes), paths)


class Ckptd:
    """Ours: a client that has said hello, and a daemon whose cache has nothing of it yet."""

    def __init__(self, node: Node, name: str = OURS, sha256: str = "") -> None:
        self.name = name
        self.version = version("ckptd")
        self._node = node
        self._sha256 = sha256
        self._versions = count()

    @contextmanager
    def fetched(self, job: Job) -> Iterator[Run]:
        """Ask a new process for it; the CPU and memory are the daemon's and the client's."""
        fresh = f"{self.name}-{next(self._versions)}".replace(" ", "-")
        job = replace(job, version=fresh, sha256=self._sha256)
        with workers.working(OURS, self._node.environment) as worker:
            daemon, used_s = Memory(self._node.pid), processes.cpu_s(self._node.pid)
            worker.ask(job)
            report = worker.answer(daemon.look)
            used_s = processes.cpu_s(self._node.pid) - used_s
            reading = {
                **_reading(report.wall_s, report.cpu_s + used_s, worker.memory.peak_bytes),
                "daemon_anon_bytes": float(daemon.peak_anon_bytes),
            }
            reading["peak_bytes"] += daemon.peak_bytes
            yield Run(reading, {name: Path(path) for name, path in report.paths.items()})
        self._node.clear()


def _reading(wall_s: float, cpu_s: float, peak_bytes: int) -> dict[str, float]:
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": float(peak_bytes)}


def _curl(job: Job) -> list[str]:
    many = ["--parallel", "--parallel-max", FILES_AT_ONCE] if len(job.names) > 1 else []
    trust = ["--cacert", job.ca_file] if job.ca_file else []
    urls = [job.url + name for name in job.names]
    into = ["--output-dir", job.folder, "--remote-name-all"]
    return ["curl", "-q", "-sS", "--fail", *many, *trust, *into, *urls]


def _aria2c(job: Job, sha256: str = "") -> list[str]:
    trust = [f"--ca-certificate={job.ca_file}"] if job.ca_file else []
    ranges = [f"-x{CONNECTIONS}", f"-s{CONNECTIONS}", f"-j{FILES_AT_ONCE}"]
    # falloc: writing zeros first, as it does by default, would be no fair race
    how = ["--no-conf", "-q", "--file-allocation=falloc", f"--dir={job.folder}"]
    listed = _listed(job, [job.url + name for name in job.names])
    check = [f"--checksum=sha-256={sha256}"] if sha256 else []
    return ["aria2c", *how, *ranges, *trust, *check, f"--input-file={listed}"]


def _rclone(job: Job) -> list[str]:
    """One file by several streams, or several files at once."""
    trust = [f"--ca-cert={job.ca_file}"] if job.ca_file else []
    how = [f"--http-url={job.url}", f"--multi-thread-streams={CONNECTIONS}", CUTOFF]
    if len(job.names) == 1:
        name = job.names[0]
        return ["rclone", "copyto", f":http:{name}", str(job.path(name)), *how, *trust]
    folders = {str(Path(name).parent) for name in job.names}
    listed = _listed(job, [Path(name).name for name in job.names])
    several = [f"--files-from={listed}", "--no-traverse", f"--transfers={FILES_AT_ONCE}"]
    several.append(f"--checkers={FILES_AT_ONCE}")
    return ["rclone", "copy", f":http:{folders.pop()}", job.folder, *how, *several, *trust]


def _listed(job: Job, lines: list[str]) -> Path:
    """Write what to fetch where the program reads it."""
    listed = Path(job.folder).with_suffix(".list")
    listed.write_text("".join(f"{line}\n" for line in lines))
    return listed


def _sha256sum(job: Job) -> list[str]:
    return ["sha256sum", *(str(job.path(name)) for name in job.names)]


def checked(contestants: Sequence[Contestant], sha256: str) -> list[Contestant]:
    """Return those of *contestants* that hash what they fetch, or are followed by one that does.

    aria2c hashes while it fetches nothing more; curl leaves it to `sha256sum`.
    """
    found: list[Contestant] = []
    for one in contestants:
        if one.name == "curl":
            found.append(Command("curl, sha256sum", one.version, (_curl, _sha256sum)))
        if one.name == "aria2c":
            arguments = partial(_aria2c, sha256=sha256)
            found.append(Command("aria2c --checksum", one.version, (arguments,)))
    return found


_COMMANDS: Mapping[str, Callable[[Job], list[str]]] = {
    "curl": _curl,
    "aria2c": _aria2c,
    "rclone": _rclone,
}
_LIBRARIES = ("hf_transfer", "obstore")
PEERS = (*_COMMANDS, *_LIBRARIES)
_HINTS = {"aria2c": "apt-get install aria2"}


def peers(names: tuple[str, ...]) -> tuple[list[Contestant], list[str]]:
    """Return those of *names* that are installed, and what to say of the others."""
    found: list[Contestant] = []
    missing = []
    for name in names:
        contestant = _command(name) if name in _COMMANDS else _library(name)
        if contestant is not None:
            found.append(contestant)
            continue
        hint = f"apt-get install {name}" if name in _COMMANDS else f"pip install {name}"
        missing.append(f"{name}: not installed ({_HINTS.get(name, hint)})")
    return found, missing


def _command(name: str) -> Contestant | None:
    if shutil.which(name) is None:
        return None
    ask = [name, "version"] if name == "rclone" else [name, "--version"]
    said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    return Command(name, version_of(said), (_COMMANDS[name],))


def _library(name: str) -> Contestant | None:
    try:
        return Library(name, version(name))
    except PackageNotFoundError:
        return None
