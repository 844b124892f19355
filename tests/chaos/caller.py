"""A process that fetches at random until it is killed or told to stop; one line for each call.

    python tests/chaos/caller.py SEED FILES.json

It goes on while its stdin is open. Every line says what was asked, when, and what came of it:
the SHA-256 of the file that was handed over, or the error.
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
KEPT_MAX = 1


class Caller:
    def __init__(self, seed: str, files: list[dict[str, Any]]) -> None:
        self._random = random.Random(seed)
        self._files = files
        self._client = client()
        self._kept: list[tuple[str, Path, str]] = []  # leased until this process ends
        self._ways: dict[str, Callable[[dict[str, Any]], str | None]] = {
            "open": self._open,
            "fetch": self._fetch,
            "leave": self._leave,
            "cancel": self._cancel,
            "offline": self._offline,
        }

    def run(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            way = self._random.choices([*self._ways], [6, 3, 2, 2, 1])[0]
            self._call(way, self._random.choice(self._files))

    def _call(self, way: str, file: dict[str, Any]) -> None:
        report: dict[str, Any] = {"way": way, "name": file["name"], "began": time.monotonic()}
        try:
            report["sha256"] = self._ways[way](file)
        except errors.CkptdError as error:
            report |= {"error": type(error).__name__, "message": str(error)}
        report["ended"] = time.monotonic()
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()

    def _open(self, file: dict[str, Any]) -> str:
        with self._client.open(file["url"], sha256=file["sha256"], timeout=PATIENCE_S) as path:
            found = sha256_of(path)
            if self._random.random() < 0.3:
                time.sleep(self._random.uniform(0, 0.5))
                assert sha256_of(path) == found, f"{path} changed while it was held"
        return found

    def _fetch(self, file: dict[str, Any]) -> str:
        if len(self._kept) == KEPT_MAX:
            name, path, found = self._random.choice(self._kept)
            assert sha256_of(path) == found, f"{name} at {path} changed under its lease"
            return self._open(file)
        path = self._client.fetch(file["url"], sha256=file["sha256"], timeout=PATIENCE_S)
        self._kept.append((file["name"], path, sha256_of(path)))
        return self._kept[-1][2]

    def _leave(self, file: dict[str, Any]) -> str:
        """Have little time."""
        until_s = self._random.uniform(0.02, 0.7)
        with self._client.open(file["url"], sha256=file["sha256"], timeout=until_s) as path:
            return sha256_of(path)

    def _cancel(self, file: dict[str, Any]) -> str | None:
        """Be cancelled in the middle."""

        async def fetch() -> str | None:
            with anyio.move_on_after(self._random.uniform(0.02, 0.7)):
                async with aio.Client().open(
                    file["url"], sha256=file["sha256"], timeout=PATIENCE_S
                ) as path:
                    return sha256_of(path)
            return None

        return anyio.run(fetch)

    def _offline(self, file: dict[str, Any]) -> str:
        with self._client.open(file["url"], offline=True, timeout=PATIENCE_S) as path:
            return sha256_of(path)


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


def main() -> None:
    is_over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=listen, daemon=True).start()
    Caller(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())).run(is_over)


if __name__ == "__main__":
    main()
