"""Leases do not outlive what they are about."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.store.leases import Leases


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
