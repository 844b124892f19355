"""Jobs do not outlive their ranks' interest in them."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

from ckptd_daemon.save.jobs import Jobs, key_of
from ckptd_daemon.save.places import Place
from ckptd_daemon.sessions import Process, Sessions


async def test_a_job_that_was_left_is_forgotten_though_the_process_lives_on() -> None:
    key = key_of(Place(Path("/root"), "e", "r"), "life", rank=0, world_size=1, uid=0)
    async with Sessions.open() as sessions:
        session = sessions.attend(Process.of_pid(os.getpid(), os.getuid()))
        jobs = Jobs(lambda job, member, reason: None)
        known = weakref.ref(jobs.join(key, 0, session).exchanges)
        jobs.leave(key.id, 0, session)
        gc.collect()
        assert known() is None
        assert len(sessions) == 1
