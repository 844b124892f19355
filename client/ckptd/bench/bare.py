"""What the origin itself gives to so many connections: their bytes are received and thrown away."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ckptd.bench.contestants import Run
from ckptd.bench.origin import LIMIT_BYTES_S
from ckptd.bench.processes import FailedError
from ckptd.bench.worker import Job

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Bare:
    """So many limited connections, each for a part of its own, and nothing kept: the bar."""

    connections: int
    size_bytes: int
    version: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"the origin alone, {self.connections} connections"

    @contextmanager
    def fetched(self, job: Job) -> Iterator[Run]:
        """Receive it; there are no results."""
        url = job.url + job.names[0]
        bounds = [
            self.size_bytes * part // self.connections for part in range(self.connections + 1)
        ]
        with ThreadPoolExecutor(self.connections) as pool:
            began_s = time.perf_counter()
            list(pool.map(_receive, [url] * self.connections, bounds, bounds[1:]))
            wall_s = time.perf_counter() - began_s
        share = self.size_bytes / wall_s / (self.connections * LIMIT_BYTES_S)
        figures = {"wall_s": wall_s, "streams": float(self.connections), "stream_share": share}
        yield Run(figures, {})


def _receive(url: str, start: int, end: int) -> None:
    """Receive a range over a plain connection; raises `FailedError` if less comes."""
    parts = urlsplit(url)
    piece = bytearray(_PIECE_BYTES)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port)) as connection:
        connection.request("GET", parts.path, headers={"Range": f"bytes={start}-{end - 1}"})
        reply = connection.getresponse()
        got = 0
        while count := reply.readinto(piece):
            got += count
    if (reply.status, got) != (206, end - start):
        raise FailedError(f"status {reply.status}, {got} bytes instead of {end - start}")
