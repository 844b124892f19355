"""Saving, from the joining of ranks to the outcome of their attempts: what it is made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import anyio
from anyio import to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.save.admission import Admission
from ckptd_daemon.save.arena.allotment import Allotment
from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.lending import Lending
from ckptd_daemon.save.arena.offers import Offers
from ckptd_daemon.save.commit import owner
from ckptd_daemon.save.enrolment import Enrolment
from ckptd_daemon.save.errands import Errands
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.jobs import Jobs
from ckptd_daemon.save.nodes.ground import Ground
from ckptd_daemon.save.nodes.protocol import Timing
from ckptd_daemon.save.opening import Opening
from ckptd_daemon.save.orphans import Orphans
from ckptd_daemon.save.outcomes import Outcomes
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.preempting import Preempting
from ckptd_daemon.save.preemption import PreemptionStatistics
from ckptd_daemon.save.reservations import Reservations
from ckptd_daemon.save.retrying import Retrying
from ckptd_daemon.save.staging import Staging
from ckptd_daemon.save.track import is_staged
from ckptd_daemon.save.tracks import SaveStatistics, Tracks


class Saver:
    """What ranks call, a part for each phase of a save; and how all of it is, and ends."""

    def __init__(
        self,
        arena: Arena,
        jobs: Jobs,
        tracks: Tracks,
        preempting: Preempting,
        *,
        enrolment: Enrolment,
        opening: Opening,
        staging: Staging,
        outcomes: Outcomes,
        lending: Lending,
    ) -> None:
        self._arena = arena
        self._jobs = jobs
        self._tracks = tracks
        self._preempting = preempting
        self.enrolment = enrolment
        self.opening = opening
        self.staging = staging
        self.outcomes = outcomes
        self.lending = lending

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: Config,
        offer: Callable[[int, int], str],
        on_committed: Callable[[Place], None],
    ) -> AsyncIterator[Self]:
        """Serve saves; begin with finishing what an earlier daemon left staged, each run by itself.

        *offer* gives a token by which a process of a uid collects a descriptor; *on_committed*
        hears of each run that has a new step.
        """
        async with Arena.open(config) as (arena, left), anyio.create_task_group() as tasks:
            tracks = Tracks(arena)
            allotment = Allotment(arena, config.slots_per_rank)
            reservations = Reservations(arena, allotment, tracks)
            jobs = Jobs(reservations.lose)
            timing = Timing(takeover_s=config.takeover_s, patience_s=config.peers_wait_s)
            writers, ground = Writers(config), Ground(timing)
            retrying = Retrying(config.persist_retry_s)
            finisher = Finisher(tracks, tasks, writers, ground, on_committed, retrying)
            name = await to_thread.run_sync(owner.own_name, config.state_dir)
            preempting = Preempting(config, tracks, finisher, tasks)
            errands, offers = Errands(tasks), Offers(offer)
            admission = Admission(allotment, tracks)
            opening = Opening(jobs, tracks, reservations, admission, finisher, errands, name)
            orphans = Orphans(config, jobs, tracks, errands)
            await orphans.take_up(left, finisher)
            tasks.start_soon(reservations.end_stalled)
            tasks.start_soon(preempting.heed)
            yield cls(
                *(arena, jobs, tracks, preempting),
                enrolment=Enrolment(config, jobs, tracks, opening, errands, name),
                opening=opening,
                staging=Staging(
                    *(arena, jobs, tracks, reservations, opening, orphans, finisher, offers)
                ),
                outcomes=Outcomes(config, tracks, orphans),
                lending=Lending(arena, offers),
            )
            tasks.cancel_scope.cancel()

    def __repr__(self) -> str:
        return f"<Saver [{len(self._jobs)} jobs, {len(self._tracks)} attempts] {self._arena!r}>"

    def statistics(self) -> SaveStatistics:
        """Return counts and attempts as they are now."""
        return SaveStatistics(
            jobs=len(self._jobs),
            attempts=tuple(track.reading() for track in self._tracks),
            newest=self._tracks.newest,
            unsaved=self._tracks.unsaved,
            arena=self._arena.statistics(),
        )

    def preemption(self) -> PreemptionStatistics | None:
        """Return how far saving is, if this daemon or its node is about to go away."""
        return self._preempting.statistics()

    @property
    def notice(self) -> tuple[str, float] | None:
        """Why this node goes away and in how many seconds; None while nobody says so."""
        return self._preempting.notice

    @property
    def is_idle(self) -> bool:
        """No attempt is open or on its way."""
        return len(self._tracks) == 0

    def refuse_new(self) -> None:
        """Take no new attempt; those that are open may still be sealed, the newest goes first."""
        self._jobs.refuse_new()
        self._preempting.stop()
        self.lending.end()

    async def wait_idle(self) -> None:
        """Wait until every attempt in hand has ended."""
        await self._tracks.wait_none()

    def unfinished(self) -> list[str]:
        """Return a sentence per attempt that the next start finishes, and tell its followers."""
        self._preempting.say_what_became()
        return [
            f"step {track.attempt.step} in {track.attempt.job.place} is staged and not committed"
            for track in self._tracks
            if is_staged(track)
        ]
