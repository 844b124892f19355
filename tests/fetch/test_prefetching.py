"""Prefetches: a few at a time, across restarts of the daemon, and their failures are told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ckptd.values import Miss
from ckptd_daemon.fetch.call import Request
from ckptd_daemon.fetch.prefetches import MISS_S, MISSES_MAX, PREFETCHES_MAX, Misses
from ckptd_daemon.store.wishes import Wish, Wishes
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.node import clean
from fakes.origin import Fault, Origin
from fakes.running import ckptd
from fakes.waiting import eventually

COUNT = PREFETCHES_MAX + 8


@pytest.fixture
def hasty(short_path: Path) -> Iterator[Daemon]:
    """A daemon that gives up soon, waits for nothing when it ends, and remembers no failure."""
    with Daemon(short_path, failure_s=0, retries=1, drain_s=0, linger_s=0) as running:
        yield running


def misses(daemon: Daemon) -> tuple[Miss, ...]:
    return daemon.client().status().misses


def notes(daemon: Daemon) -> list[Path]:
    return sorted((daemon.state_dir / "cache" / "prefetches").iterdir())


def restart(daemon: Daemon, *, politely: bool = False) -> None:
    if politely:
        assert daemon.stop() == 0
    else:
        daemon.kill()
    daemon.start()


async def test_prefetches_take_turns(short_path: Path, origin: Origin) -> None:
    names = [f"f{index}" for index in range(COUNT)]
    for name in names:
        origin.put(name, b"data")
    origin.hold()
    async with clean(short_path, origin, first_byte_s=30, stall_s=30) as node:
        for name in names:
            await node.fetcher.prefetch(Request(origin.url(name), keep_s=60), os.getuid())
        with anyio.fail_after(20):
            while len(node.fetcher.statistics().flights) < PREFETCHES_MAX:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert len(node.fetcher.statistics().flights) == PREFETCHES_MAX
            origin.release()
            await node.fetcher.wait_idle()
        assert len(node.fetcher.statistics().flights) == 0
        assert node.fetcher.statistics().blobs == COUNT


async def test_what_somebody_waits_for_of_one_host_has_the_streams_of_prefetches_of_another(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    with Origin() as other:
        for name in ("a", "b"):
            origin.put(name, data)
        other.put("urgent", b"urgent")
        patient = {"streams": 2, "streams_max": 2, "stall_s": 600, "first_byte_s": 600}
        async with clean(short_path, origin, other, **patient) as node:
            origin.hold(after_bytes=1 << 20)
            for name in ("a", "b"):
                await node.fetcher.prefetch(Request(origin.url(name), keep_s=60), os.getuid())
            await anyio.to_thread.run_sync(origin.held.wait, 30)
            with anyio.fail_after(20):  # while these two stand still on all streams that there are
                path = await node.fetch(other.url("urgent"))
            assert path.read_bytes() == b"urgent"
            origin.release()
            with anyio.fail_after(30):
                await node.fetcher.wait_idle()
            assert node.fetcher.statistics().blobs == 3


def test_a_failure_is_told_by_the_status_until_the_same_is_here(
    hasty: Daemon, origin: Origin
) -> None:
    client = hasty.client()
    client.prefetch([origin.url("model?token=secret")])
    (miss,) = eventually(lambda: misses(hasty))
    assert (miss.object, miss.error) == (origin.url("model?…"), "NotFound")
    assert miss.sentence.endswith(f"[error {miss.id}]")
    assert miss.id in hasty.log_text()
    told = ckptd("status", env=hasty.env).stdout
    assert "not prefetched" in told
    assert miss.sentence in told
    (as_json,) = json.loads(ckptd("status", "--json", env=hasty.env).stdout)["misses"]
    assert as_json["sentence"] == miss.sentence
    assert "secret" not in told + hasty.log_text()
    assert notes(hasty) == []

    origin.put("model", b"data")
    client.fetch(origin.url("model?token=secret"))
    assert misses(hasty) == ()


@pytest.mark.parametrize("politely", [False, True])
def test_a_restart_goes_on_with_what_was_asked_for(
    politely: bool, hasty: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.put("last", b"last")
    origin.hold(after_bytes=len(data) // 2)
    hasty.client().prefetch([origin.url("model"), origin.url("last")], keep_s=600)
    assert origin.held.wait(30)
    restart(hasty, politely=politely)
    origin.release()
    client = hasty.client()
    eventually(lambda: len(client.blobs()) == 2 and not notes(hasty))
    assert {(blob.object, blob.leases) for blob in client.blobs()} == {
        (origin.url("model"), 1),
        (origin.url("last"), 1),
    }
    assert client.fetch(origin.url("model"), offline=True).read_bytes() == data
    assert client.status().idle is False
    restart(hasty)
    assert not hasty.client().status().flights


def test_a_url_that_may_hold_a_secret_is_not_written_down_and_a_restart_tells(
    hasty: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    origin.hold()
    hasty.client().prefetch([origin.url("model?token=secret")])
    (note,) = notes(hasty)
    assert "secret" not in note.read_text()
    restart(hasty)
    (miss,) = misses(hasty)
    assert miss.object == origin.url("model?…")
    assert "prefetch it again" in miss.sentence
    assert notes(hasty) == []
    origin.release()


def test_who_is_served_no_more_has_nothing_prefetched(hasty: Daemon, origin: Origin) -> None:
    origin.put("model", b"data")
    url = origin.url("model")
    hasty.kill()
    wish = Wish(url, url, 12345, None, 0.0, False, (), (), 1.0)
    Wishes(hasty.state_dir / "cache" / "prefetches").write(wish)
    hasty.start()
    (miss,) = misses(hasty)
    assert "user 12345" in miss.sentence
    assert origin.sent_bytes == 0
    assert notes(hasty) == []


def test_what_is_withdrawn_is_fetched_no_more_and_what_came_stays(
    hasty: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.put("other", data)
    origin.hold(after_bytes=len(data) // 2)
    client = hasty.client()
    client.prefetch([origin.url("model")])
    assert origin.held.wait(30)
    client.prefetch([origin.url("other")])
    done = ckptd("prefetch", "--withdraw", origin.url("model"), "--json", env=hasty.env)
    assert json.loads(done.stdout) == {"withdrawn": 1}
    assert client.withdraw([origin.url("model")]) == 0
    eventually(lambda: [one.object for one in client.status().flights] == [origin.url("other")])
    eventually(lambda: len(notes(hasty)) == 1)
    assert misses(hasty) == ()
    origin.release()
    eventually(lambda: [blob.object for blob in client.blobs()] == [origin.url("other")])
    assert client.fetch(origin.url("model")).read_bytes() == data


def test_the_same_wish_twice_is_one(hasty: Daemon, origin: Origin) -> None:
    origin.put("model", b"data").lasting = Fault.MUTE
    for _ in range(2):
        hasty.client().prefetch([origin.url("model")])
    assert len(notes(hasty)) == 1
    assert hasty.client().withdraw([origin.url("model")]) == 1


def test_a_note_that_is_damaged_or_of_a_newer_version_keeps_nobody_from_starting(
    hasty: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    url = origin.url("model")
    hasty.kill()
    directory = hasty.state_dir / "cache" / "prefetches"
    wish = Wish(url, url, os.getuid(), None, 0.0, False, (), (), 1.0)
    Wishes(directory).write(replace(wish, keep_s=60.0))
    (sound,) = directory.iterdir()
    (directory / f"{wish.id}.json").write_bytes(sound.read_bytes())  # under another's name
    (directory / "torn.json").write_text('{"format": 1, "url": "http')
    (directory / "newer.json").write_text('{"format": 2}')
    hasty.start()
    eventually(lambda: [blob.leases for blob in hasty.client().blobs()] == [1])
    eventually(lambda: [path.name for path in notes(hasty)] == ["newer.json"])
    assert misses(hasty) == ()


def test_failures_are_few_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Misses()
    for number in range(MISSES_MAX + 1):
        found.note((0, str(number), (), ()), f"f{number}", errors.NotFound("it is gone"))
    assert [miss.title for miss in found.recent()] == [f"f{n + 1}" for n in range(MISSES_MAX)]
    now = found.recent()[0].at
    monkeypatch.setattr("time.time", lambda: now + MISS_S + 3600)
    assert found.recent() == ()
