"""Many references in one call; and fetching ahead of need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from ckptd import aio, errors
from ckptd.values import Progress
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.running import ckptd, python
from fakes.waiting import eventually

COUNT = 120  # more than go side by side


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """A daemon whose flights end with their last passenger."""
    with Daemon(short_path, linger_s=0) as running:
        yield running


def put(origin: Origin, count: int = COUNT) -> dict[str, bytes]:
    files = {f"part-{number:03}": b"%d" % number * (number + 1) for number in range(count)}
    for name, data in files.items():
        origin.put(name, data)
    return files


def leases(daemon: Daemon) -> int:
    return sum(blob.leases for blob in daemon.client().blobs())


def test_many_arrive_in_the_order_they_were_asked_for(
    daemon: Daemon, origin: Origin, tmp_path: Path
) -> None:
    files = put(origin)
    here = tmp_path / "here"
    here.write_bytes(b"local")
    names = [str(here), *map(origin.url, files), origin.url("part-003"), f"file://{here}"]
    paths = daemon.client().fetch_many(names)
    found = [path.read_bytes() for path in paths]
    assert found == [b"local", *files.values(), files["part-003"], b"local"]
    assert leases(daemon) == COUNT
    assert len(origin.bodies("part-003")) == 1


def test_batches_that_are_under_way_together_bring_what_they_share_once(
    daemon: Daemon, origin: Origin
) -> None:
    files = put(origin, 4)
    names = list(files)
    client = daemon.client()
    origin.hold()
    with ThreadPoolExecutor(2) as callers:
        parts = names[:3], names[1:]
        batches = [callers.submit(client.fetch_many, [*map(origin.url, part)]) for part in parts]
        shared = {origin.url(name) for name in parts[0] if name in parts[1]}
        try:
            eventually(
                lambda: shared <= {f.object for f in client.status().flights if f.waiters == 2}
            )
        finally:
            origin.release()
        for part, batch in zip(parts, batches, strict=True):
            assert [path.read_bytes() for path in batch.result(30)] == [files[n] for n in part]
    assert sorted(name for name, _ in origin.requests) == names


def test_hashes_are_stated_one_by_one(daemon: Daemon, origin: Origin) -> None:
    files = put(origin, 3)
    urls = [origin.url(name) for name in files]
    good = [hashlib.sha256(data).hexdigest() for data in files.values()]
    assert len(daemon.client().fetch_many(urls, sha256=[good[0], None, good[2]])) == 3
    with pytest.raises(errors.InvalidArgument, match="3 references and 1 SHA-256s"):
        daemon.client().fetch_many(urls, sha256=good[:1])
    with pytest.raises(errors.DataLoss, match="reference 2 of 3"):
        daemon.client().fetch_many(urls, sha256=[None, "0" * 64, None])


def test_one_that_fails_is_named_and_nothing_is_held(daemon: Daemon, origin: Origin) -> None:
    files = put(origin)
    origin.put("part-100", b"").lasting = Fault.LOSE
    with pytest.raises(errors.NotFound, match=r"reference 101 of 120: .*part-100.*404") as caught:
        daemon.client().fetch_many([origin.url(name) for name in files])
    assert caught.value.id
    eventually(lambda: leases(daemon) == 0)
    eventually(lambda: not list((daemon.state_dir / "cache" / "leases").iterdir()))


def test_none_at_all_is_no_work(daemon: Daemon) -> None:
    assert daemon.client().fetch_many([]) == []


def test_progress_is_of_all_of_them(daemon: Daemon, origin: Origin) -> None:
    files = put(origin)
    seen: list[Progress] = []
    daemon.client().fetch_many([origin.url(name) for name in files], on_progress=seen.append)
    total = sum(map(len, files.values()))
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (total, total)


def test_progress_says_how_fast_it_goes_and_what_holds_it_up(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data[: 6 << 20])
    origin.put("b", data[: 6 << 20])
    client = daemon.client()
    client.configure({"max_bytes_per_s": 8 << 20})
    seen: list[Progress] = []
    client.fetch_many([origin.url("a"), origin.url("b")], on_progress=seen.append)
    limited = [progress for progress in seen if progress.cause == "limit"]
    assert limited
    assert limited[-1].rate_bytes_per_s > 0
    assert limited[-1].eta_s is not None
    assert "max_bytes_per_s" in limited[-1].reason


def test_many_that_must_all_wait_say_for_what(daemon: Daemon, origin: Origin) -> None:
    for name in ("a", "b"):
        origin.put(name, b"data", retry_after_s=1).faults = [Fault.THROTTLE]
    seen: list[Progress] = []
    daemon.client().fetch_many([origin.url("a"), origin.url("b")], on_progress=seen.append)
    assert {"throttled"} <= {progress.cause for progress in seen}


def test_one_host_is_asked_by_no_more_than_its_level_however_many_files_there_are(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    names = [f"part-{number}" for number in range(80)]
    for name in names:
        origin.put(name, data[: 1 << 20]).lasting = Fault.NO_RANGES
    paths = daemon.client().fetch_many([origin.url(name) for name in names])
    assert all(path.stat().st_size == 1 << 20 for path in paths)
    assert origin.connections_max <= 3 * 8  # of replies, of questions, and some that wind down


def test_nobody_waits_for_what_is_fetched_ahead(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("ahead", data).lasting = Fault.NO_RANGES
    origin.hold()
    client = daemon.client()
    client.prefetch([origin.url("ahead")])
    assert origin.held.wait(30)
    (flight,) = client.status().flights
    assert flight.waiters == 0
    origin.release()


def test_one_reference_where_several_belong_is_refused_in_words(daemon: Daemon) -> None:
    asks: list[Any] = [daemon.client().fetch_many, daemon.client().prefetch]
    for ask in asks:
        for ref in ("http://origin/model", Path("/model")):
            with pytest.raises(errors.InvalidArgument, match="give a sequence"):
                ask(ref)


def test_the_command_fetches_several_side_by_side_and_tells_what_speaks_for_each(
    daemon: Daemon, origin: Origin, tmp_path: Path, data: bytes
) -> None:
    here = tmp_path / "here"
    here.write_bytes(b"local")
    for name in ("a", "b"):
        origin.put(name, data)
    origin.hold(after_bytes=len(data) // 2)
    stated = hashlib.sha256(data).hexdigest()
    refs = [f"{origin.url('a')}#sha256={stated}", origin.url("b"), str(here)]
    with ThreadPoolExecutor(1) as caller:
        done = caller.submit(ckptd, "fetch", "--json", *refs, env=daemon.env)
        eventually(lambda: len(daemon.client().status().flights) == 2)
        origin.release()
    said = [json.loads(line) for line in done.result().stdout.splitlines()]
    assert [one["ref"] for one in said] == [origin.url("a"), *refs[1:]]
    found = [(one["verification"], one["sha256"]) for one in said]
    assert found == [("sha256", stated), ("transport", None), (None, None)]
    assert [one["size_bytes"] for one in said] == [len(data), len(data), 5]


async def test_a_cancelled_batch_holds_nothing(daemon: Daemon, origin: Origin, data: bytes) -> None:
    files = put(origin, 5)
    origin.put("model", data)
    client = aio.Client(daemon.socket)
    async with anyio.create_task_group() as tasks:
        origin.hold(after_bytes=len(data) // 2)
        names = [*map(origin.url, files), origin.url("model")]
        tasks.start_soon(client.fetch_many, names)
        await anyio.to_thread.run_sync(origin.held.wait, 30)
        tasks.cancel_scope.cancel()
    await anyio.to_thread.run_sync(eventually, lambda: not daemon.client().status().flights)
    assert leases(daemon) == 0
    origin.release()


def test_a_deadline_says_how_many_had_arrived(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    with pytest.raises(errors.DeadlineExceeded, match="0 of 1 had arrived after 1 s"):
        daemon.client().fetch_many([origin.url("model")], timeout=1)
    origin.release()


def test_a_prefetch_outlives_its_caller_and_is_kept(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    code = f"import ckptd; ckptd.prefetch([{origin.url('model')!r}], keep_s=600)"
    assert python(code, env=daemon.env) == ""
    assert origin.held.wait(30)
    client = daemon.client()
    eventually(lambda: client.status().sessions == 1)  # ours alone
    assert [flight.object for flight in client.status().flights] == [origin.url("model")]
    origin.release()
    eventually(lambda: not client.status().flights)
    (blob,) = client.blobs()
    assert (blob.path.read_bytes(), blob.leases) == (data, 1)
    daemon.kill()
    daemon.start()
    assert leases(daemon) == 1
    assert client.fetch(origin.url("model"), offline=True) == blob.path


def test_the_command_prefetches_a_directory(daemon: Daemon, origin: Origin) -> None:
    for name in ("a.bin", "b.bin", "c.txt"):
        origin.put(f"m/{name}", name.encode())
    links = "".join(f'<a href="{name}">{name}</a>' for name in ("a.bin", "b.bin", "c.txt"))
    origin.put("m/", f"<h1>Index of /m/</h1>{links}".encode())
    done = ckptd("prefetch", origin.url("m/"), "--include", "*.bin", "--json", env=daemon.env)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"prefetching": origin.url("m/")})
    client = daemon.client()
    eventually(lambda: not client.status().flights and leases(daemon) == 2)
    tree = client.fetch(origin.url("m/"), include="*.bin", offline=True)
    assert {path.name for path in tree.iterdir()} == {"a.bin", "b.bin"}


def test_what_is_no_reference_or_is_here_is_refused_at_once(daemon: Daemon, tmp_path: Path) -> None:
    for ref in ("gopher://host/model", str(tmp_path)):
        with pytest.raises(errors.InvalidArgument):
            daemon.client().prefetch([ref])
