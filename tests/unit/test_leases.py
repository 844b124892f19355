"""Leases do not outlive what they are about."""

from __future__ import annotations

import gc
import json
import os
import weakref
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.store import durable
from ckptd_daemon.store import leases as written
from ckptd_daemon.store.leases import FORMAT, Lease, Leases
from ckptd_proto import errors


async def test_a_lease_given_back_leaves_nothing_with_its_living_holder(tmp_path: Path) -> None:
    holder = Process.of_pid(os.getpid(), os.getuid())
    async with Sessions.open() as sessions:
        async with Leases.open(tmp_path, sessions) as leases:
            for key in ["a", "b"]:
                lease = leases.take(key, holder, keep_s=0)
                await leases.release(lease.id, holder.uid, wholly=True)
        known = weakref.ref(leases)
        del leases
        gc.collect()
        assert known() is None
        assert len(sessions) == 1


async def test_a_holder_that_cannot_be_watched_holds_until_its_connection_closes(
    tmp_path: Path,
) -> None:
    unseen = Process(pid=0, started=-7, uid=0)
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        sessions.connect("c-1", unseen)
        leases.take("a", unseen, keep_s=0)
        assert "a" in leases
        sessions.disconnect("c-1")
        assert "a" not in leases


async def test_a_disk_that_fails_when_a_holder_ends_ends_its_lease_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(path: Path, data: bytes, **_: object) -> None:
        raise errors.ResourceExhausted(f"{path} is full")

    unseen = Process(pid=0, started=-7, uid=0)
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        sessions.connect("c-1", unseen)
        leases.take("a", unseen, keep_s=0.001)
        monkeypatch.setattr(durable, "write_file", failing)
        freed = anyio.Event()
        leases.on_freed(freed.set)
        sessions.disconnect("c-1")
        with anyio.fail_after(30):
            await freed.wait()
        assert "a" not in leases
    assert "is full" in caplog.text


def files(directory: Path) -> list[str]:
    return sorted(json.loads(path.read_bytes())["key"] for path in directory.glob("*.json"))


async def test_a_crowd_of_leases_is_written_in_a_few_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, goes = Process.of_pid(os.getpid(), os.getuid()), []
    write = written._write
    monkeypatch.setattr(written, "_write", lambda *given: goes.append(given) or write(*given))
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        names = [leases.take(f"{each:03}", holder, keep_s=0).id for each in range(200)]
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(leases.write, name)
        assert files(tmp_path) == [f"{each:03}" for each in range(200)]
        assert len(goes) <= 5
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(partial(leases.release, name, holder.uid, wholly=True))
        assert files(tmp_path) == []


async def test_of_leases_written_together_only_those_fail_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    holder, failed = Process.of_pid(os.getpid(), os.getuid()), []
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        names = {key: leases.take(key, holder, keep_s=0).id for key in "abcd"}
        for key in "ac":
            (tmp_path / f"{names[key]}.json").mkdir()  # no file takes its place

        async def write(key: str) -> None:
            try:
                await leases.write(names[key])
            except (OSError, errors.CkptdError):
                failed.append(key)

        async with anyio.create_task_group() as tasks:
            for key in names:
                tasks.start_soon(write, key)
        assert sorted(failed) == ["a", "c"]
        for key in "ac":
            (tmp_path / f"{names[key]}.json").rmdir()
            await leases.write(names[key])
        assert files(tmp_path) == ["a", "b", "c", "d"]


async def test_what_changes_while_it_is_written_is_written_again(tmp_path: Path) -> None:
    holder = Process.of_pid(os.getpid(), os.getuid())
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        name = leases.take("a", holder, keep_s=0).id
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leases.write, name)
            await anyio.lowlevel.checkpoint()
            for keep_s in (1.0, 2.0):
                leases.take("a", holder, keep_s=keep_s)
                tasks.start_soon(leases.write, name)
                await anyio.lowlevel.checkpoint()
        assert json.loads((tmp_path / f"{name}.json").read_bytes())["keep_s"] == 2


async def test_a_lease_whose_time_was_up_while_nobody_ran_ends_at_the_start(tmp_path: Path) -> None:
    gone = Lease("a" * 32, "a", Process(pid=0, started=-7, uid=0), keep_s=1.0, until=1.0)
    (tmp_path / f"{gone.id}.json").write_text(json.dumps({"format": FORMAT, **asdict(gone)}))
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        freed = anyio.Event()
        leases.on_freed(freed.set)
        with anyio.fail_after(30):
            await freed.wait()
        assert "a" not in leases
