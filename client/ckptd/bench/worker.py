"""`python -m ckptd.bench.worker KIND`: a process that is ready before the clock runs.

It loads its library, says `{}`, and then answers one line of JSON with one: a library is
measured as it is used, in a process that runs already. What it fetched by ckptd it holds until
the next line, or until it ends.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptd.bench.processes import sync

if TYPE_CHECKING:
    from obstore.store import ClientConfig

    from ckptd.client import Client

FILES_AT_ONCE = 16
RANGE_BYTES = 16 << 20
RANGES_AT_ONCE = 16
HF_CHUNK_BYTES = 10 << 20  # this, and what follows, as huggingface_hub called it
HF_CONNECTIONS = 100
HF_FAILURES = 3
HF_RETRIES = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What to fetch, and how."""

    url: str
    """Of the folder at the origin, with its slash."""
    names: tuple[str, ...]
    folder: str
    """Where results go, but for those that stay in ckptd's cache."""
    ca_file: str = ""
    version: str = ""
    """Asks for what no cache has yet."""
    sha256: str = ""
    times: int = 1
    """How often, one after the other."""
    callers: int = 1
    """How many ask at once."""
    pause_s: float = 0.0
    """Between two times, on average."""

    def ref(self, name: str) -> str:
        """Return what ckptd is asked for."""
        return f"{self.url}{name}?{self.version}"

    def path(self, name: str) -> Path:
        """Return where the result goes."""
        return Path(self.folder, Path(name).name)


@dataclass(slots=True)
class Answer:
    """What came of it."""

    paths: dict[str, str] = field(default_factory=dict)
    """Of the results, by their names."""
    took_s: list[float] = field(default_factory=list)
    """Of each fetch."""
    messages: int = 0
    """Readings of progress that came."""


Work = Callable[[Job], Answer]


def main() -> None:
    """Serve until there are no more lines."""
    with ExitStack() as stack:
        work = _WORKS[sys.argv[1]](stack)
        _say({})
        for line in sys.stdin:
            given = json.loads(line)
            job = Job(**{**given, "names": tuple(given["names"])})
            cpu_s, began_s = _cpu_s(), time.monotonic()
            answer = work(job)
            figures = {"began_s": began_s, "ended_s": time.monotonic(), "cpu_s": _cpu_s() - cpu_s}
            said = {"paths": answer.paths, "took_s": answer.took_s, "messages": answer.messages}
            _say(figures | said)


def _say(message: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _ckptd(stack: ExitStack) -> Work:
    from ckptd.client import Client

    client = Client()
    held = stack.enter_context(ExitStack())

    def work(job: Job) -> Answer:
        held.close()
        if job.callers > 1:
            return _wait_together(client, job, held)
        if job.times > 1:
            return _again(client, job)
        return _fetch_all(client, job, held)

    return work


def _fetch_all(client: Client, job: Job, held: ExitStack) -> Answer:
    """Fetch one object and hold it, or several until the process ends."""
    refs = [job.ref(name) for name in job.names]
    if len(refs) > 1:
        paths = client.fetch_many(refs)
    else:
        paths = [held.enter_context(client.open(refs[0], sha256=job.sha256 or None))]
    return Answer(dict(zip(job.names, map(str, paths), strict=True)))


def _again(client: Client, job: Job) -> Answer:
    """Fetch what is there already, as a rank does: it holds it until it ends."""
    answer = Answer()
    for _ in range(job.times):
        time.sleep(random.uniform(0, 2 * job.pause_s))
        began_s = time.perf_counter()
        client.fetch(job.ref(job.names[0]))
        answer.took_s.append(time.perf_counter() - began_s)
    return answer


def _wait_together(client: Client, job: Job, held: ExitStack) -> Answer:
    """Ask for the same by many threads."""
    answer = Answer()

    def wait(_: int) -> None:
        count = 0

        def tell(_: object) -> None:
            nonlocal count
            count += 1

        began_s = time.perf_counter()
        opened = client.open(job.ref(job.names[0]), on_progress=tell)
        held.enter_context(opened)
        answer.took_s.append(time.perf_counter() - began_s)
        counts.append(count)

    counts: list[int] = []
    with ThreadPoolExecutor(job.callers) as pool:
        list(pool.map(wait, range(job.callers)))
    answer.messages = sum(counts)
    return answer


def _hf_transfer(_: ExitStack) -> Work:
    import hf_transfer

    def work(job: Job) -> Answer:
        def fetch(name: str) -> None:
            url, path = job.url + name, str(job.path(name))
            limits = HF_CONNECTIONS, HF_CHUNK_BYTES, HF_FAILURES, HF_RETRIES
            hf_transfer.download(url, path, *limits)

        _at_once(fetch, job.names)
        return _synced(job)

    return work


def _obstore(_: ExitStack) -> Work:
    import anyio
    from anyio import CapacityLimiter, to_thread
    from obstore.store import HTTPStore

    async def fetch_all(job: Job, options: ClientConfig) -> None:
        store = HTTPStore.from_url(job.url, client_options=options)
        turn = CapacityLimiter(RANGES_AT_ONCE)

        async def fetch(name: str, fd: int, start: int, end: int) -> None:
            async with turn:
                data = await store.get_range_async(name, start=start, end=end)
                await to_thread.run_sync(os.pwrite, fd, data, start)

        async def fetch_file(name: str) -> None:
            async with turn:
                size = (await store.head_async(name))["size"]
            with job.path(name).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                async with anyio.create_task_group() as tasks:
                    for start in range(0, size, RANGE_BYTES):
                        end = min(start + RANGE_BYTES, size)
                        tasks.start_soon(fetch, name, file.fileno(), start, end)

        async with anyio.create_task_group() as tasks:
            for name in job.names:
                tasks.start_soon(fetch_file, name)

    def work(job: Job) -> Answer:
        options: ClientConfig = {"allow_http": True}
        if job.ca_file:
            options["root_certificate"] = Path(job.ca_file).read_bytes()
        anyio.run(fetch_all, job, options)
        return _synced(job)

    return work


def _at_once(fetch: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return list(pool.map(fetch, names))


def _synced(job: Job) -> Answer:
    for name in job.names:
        sync(job.path(name))
    return Answer({name: str(job.path(name)) for name in job.names})


_WORKS: Mapping[str, Callable[[ExitStack], Work]] = {
    "ckptd": _ckptd,
    "hf_transfer": _hf_transfer,
    "obstore": _obstore,
}

if __name__ == "__main__":
    main()
