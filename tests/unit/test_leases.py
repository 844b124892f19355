"""Leases do not outlive what they are about."""

from __future__ import annotations

import gc
import json
import os
import weakref
from dataclasses import asdict
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.store import durable
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
        with anyio.fail_after(5):
            await freed.wait()
        assert "a" not in leases
    assert "is full" in caplog.text


async def test_a_lease_whose_time_was_up_while_nobody_ran_ends_at_the_start(tmp_path: Path) -> None:
    gone = Lease("a" * 32, "a", Process(pid=0, started=-7, uid=0), keep_s=1.0, until=1.0)
    (tmp_path / f"{gone.id}.json").write_text(json.dumps({"format": FORMAT, **asdict(gone)}))
    async with Sessions.open() as sessions, Leases.open(tmp_path, sessions) as leases:
        freed = anyio.Event()
        leases.on_freed(freed.set)
        with anyio.fail_after(5):
            await freed.wait()
        assert "a" not in leases
