"""A process that fetches at random until it is killed or told to stop; one line for each call.

    python tests/chaos/caller.py SEED TARGETS.json

It goes on while its stdin is open. Every line says what was asked, when, and what came of it:
the SHA-256 of each file or tensor that was handed over, or the error. What is drawn depends on the
seed alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

import ckptd
from ckptd import aio, errors

PATIENCE_S = 15.0
READERS = 0.25  # of all callers, for torch takes long to load
MANY = 3

Target = dict[str, Any]
Got = dict[str, dict[str, str]]
"""By name: the SHA-256 of the whole (as ``""``), or of each tensor."""


class Caller:
    def __init__(self, seed: str, targets: list[Target]) -> None:
        self._random = random.Random(seed)
        self._targets = targets
        self._client = client()
        self._kept: list[tuple[Target, Path, Got]] = []  # leased until this process ends
        self._is_reader = self._random.random() < READERS
        self._ways: dict[str, tuple[int, Callable[[Target], Got]]] = {
            "open": (6, self._open),
            "fetch": (3, self._fetch),
            "many": (2, self._many),
            "leave": (2, self._leave),
            "cancel": (2, self._cancel),
            "offline": (1, self._offline),
            "prefetch": (1, self._prefetch),
        }

    def run(self, is_over: threading.Event) -> None:
        weights = [weight for weight, _ in self._ways.values()]
        with_tensors = [target for target in self._targets if target["tensors"]]
        while not is_over.is_set():
            way = self._random.choices([*self._ways], weights)[0]
            target = self._random.choice(self._targets)
            if self._is_reader and self._random.random() < 0.7:
                target = self._random.choice(with_tensors)
                self._call("tensors", target, self._read)
            else:
                self._call(way, target, self._ways[way][1])

    def _call(self, way: str, target: Target, work: Callable[[Target], Got]) -> None:
        report: dict[str, Any] = {"way": way, "name": target["name"], "began": time.monotonic()}
        try:
            report["got"] = work(target)
        except errors.CkptdError as error:
            report |= {"error": type(error).__name__, "message": str(error)}
        report["ended"] = time.monotonic()
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()

    def _open(self, target: Target) -> Got:
        url, sha256 = target["url"], target["sha256"]
        lingers_s = self._random.uniform(0, 0.5) if self._random.random() < 0.3 else None
        with self._client.open(url, sha256=sha256, timeout=PATIENCE_S) as path:
            found = got(target, path)
            if lingers_s is not None:
                time.sleep(lingers_s)
                assert got(target, path) == found, f"{path} changed while it was held"
        return found

    def _fetch(self, target: Target) -> Got:
        if not self._may_keep():
            return self._open(target)
        path = self._client.fetch(target["url"], sha256=target["sha256"], timeout=PATIENCE_S)
        return self._keep(target, path)

    def _many(self, _: Target) -> Got:
        targets = self._random.sample(self._targets, MANY)
        if not self._may_keep():
            return self._open(targets[0])
        paths = self._client.fetch_many(
            [target["url"] for target in targets],
            sha256=[target["sha256"] for target in targets],
            timeout=PATIENCE_S,
        )
        found: Got = {}
        for target, path in zip(targets, paths, strict=True):
            found |= self._keep(target, path)
        return found

    def _may_keep(self) -> bool:
        """Whether nothing is kept yet; else look whether it still is what it was."""
        for target, path, found in self._kept:
            assert got(target, path) == found, f"{path} changed under its lease"
        return not self._kept

    def _keep(self, target: Target, path: Path) -> Got:
        found = got(target, path)
        self._kept.append((target, path, found))
        return found

    def _leave(self, target: Target) -> Got:
        """Have little time."""
        until_s = self._random.uniform(0.02, 0.7)
        with self._client.open(target["url"], sha256=target["sha256"], timeout=until_s) as path:
            return got(target, path)

    def _cancel(self, target: Target) -> Got:
        """Be cancelled in the middle."""
        until_s = self._random.uniform(0.02, 0.7)

        async def fetch() -> Got:
            with anyio.move_on_after(until_s):
                async with aio.Client().open(
                    target["url"], sha256=target["sha256"], timeout=PATIENCE_S
                ) as path:
                    return got(target, path)
            return {}

        return anyio.run(fetch)

    def _offline(self, target: Target) -> Got:
        with self._client.open(target["url"], offline=True, timeout=PATIENCE_S) as path:
            return got(target, path)

    def _prefetch(self, target: Target) -> Got:
        self._client.prefetch([target["url"]], keep_s=self._random.choice([0.0, 1.0, 3.0]))
        return {}

    def _read(self, target: Target) -> Got:
        """Read some tensors, or all, early or only once the whole is verified."""
        some = self._random.sample(target["tensors"], self._random.randint(1, 4))
        is_early, is_some = self._random.random() < 0.5, self._random.random() < 0.5
        with self._client.open_tensors(
            target["url"],
            tensors=some if is_some else None,
            sha256=target["sha256"],
            verify="transport" if is_early else None,
            timeout=PATIENCE_S,
        ) as tensors:
            found = {name: _sha256(tensor.numpy()) for name, tensor in tensors.items()}
        return {target["name"]: found}


def got(target: Target, path: Path) -> Got:
    """Return the hash of the file at *path*, or of each in the tree there."""
    if not target["members"]:
        return {target["name"]: {"": sha256_of(path)}}
    found = {str(file.relative_to(path)) for file in path.rglob("*")}
    assert found == target["members"].keys(), f"{path} has {found}"
    return {name: {"": sha256_of(path / file)} for file, name in target["members"].items()}


def client() -> ckptd.Client:
    """Connect as soon as a daemon is there; it is killed now and then."""
    while True:
        try:
            return ckptd.Client()
        except errors.Unavailable:
            time.sleep(0.1)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    is_over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=listen, daemon=True).start()
    Caller(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())).run(is_over)


if __name__ == "__main__":
    main()
