"""Who saves: jobs, their ranks, and which life of a run is the present one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ckptd_daemon.save.arena.uses import Holder
from ckptd_daemon.save.attempts import Checkpoint, JobKey, Skipped
from ckptd_daemon.save.gather import Exchanges, Volume
from ckptd_daemon.save.places import Place
from ckptd_daemon.sessions import Session
from ckptd_proto import errors

WORLD_SIZE_MAX = 1 << 16
INCARNATION_BYTES_MAX = 256
_SEQUENCES_MAX = 16  # saves that ranks of one job may be apart


@dataclass(slots=True, eq=False)
class Member:
    """One rank, in the process that joined as it."""

    rank: int
    session: Session
    holder: Holder
    read_only: bool
    left: bool = False
    unwatch: Callable[[], None] = field(default=lambda: None)
    """Have its session's end mean nothing any more."""

    @property
    def is_live(self) -> bool:
        """It may still save."""
        return not self.left and not self.session.ended.is_set()


@dataclass(slots=True, eq=False)
class Job:
    """One life of a job, as far as this daemon has met it."""

    key: JobKey
    exchanges: Exchanges
    members: dict[int, Member] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    """Ranks that died, and their pids."""
    by_sequence: dict[int, str | Checkpoint | Skipped] = field(default_factory=dict)
    """The attempt of each late save by its id, or why there is none: it is committed, or skipped."""
    fenced_by: str | None = None
    saved_before: int = 0
    """Saves of this life that were there when a rank joined: by processes that counted from 0, too."""

    @property
    def is_live(self) -> bool:
        """Some rank may still save."""
        return any(member.is_live for member in self.members.values())

    def has_writer(self, session: Session) -> bool:
        """Some live rank that may save is in that process."""
        members = self.members.values()
        return any(m.session is session and m.is_live and not m.read_only for m in members)

    def note(self, sequence: int, what: str | Checkpoint | Skipped) -> None:
        """Remember what the n-th save became, for the ranks still to come."""
        self.by_sequence[sequence] = what
        for old in [old for old in self.by_sequence if old <= sequence - _SEQUENCES_MAX]:
            del self.by_sequence[old]


def key_of(place: Place, incarnation: str, *, rank: int, world_size: int, uid: int) -> JobKey:
    """Return the job's identity, the same for every rank and after every restart."""
    if not 1 <= len(incarnation.encode()) <= INCARNATION_BYTES_MAX:
        text = f"the incarnation has {len(incarnation.encode())} bytes; pass 1 to 256"
        raise errors.InvalidArgument(text)
    if not 1 <= world_size <= WORLD_SIZE_MAX:
        text = f"a world of {world_size} ranks is not possible; pass 1 to {WORLD_SIZE_MAX}"
        raise errors.InvalidArgument(text)
    if not rank < world_size:
        text = f"rank {rank} does not exist in a world of {world_size}; pass 0 to {world_size - 1}"
        raise errors.InvalidArgument(text)
    words = json.dumps([str(place.root), place.experiment, place.run, incarnation, uid])
    return JobKey(
        hashlib.sha256(words.encode()).hexdigest()[:32], place, incarnation, world_size, uid
    )


class Jobs:
    """The jobs of this node, by id; the newest life of a run fences the earlier ones."""

    def __init__(self, on_lost: Callable[[Job, Member, str], None]) -> None:
        self._on_lost = on_lost  # told of each rank that will not save any more, and why
        self._jobs: dict[str, Job] = {}
        self._present: dict[Place, str] = {}  # the job that may save into a place
        self._volume = Volume()
        self._is_refusing = False

    def __repr__(self) -> str:
        return f"<Jobs [{len(self._jobs)} jobs, {sum(len(j.members) for j in self)} ranks]>"

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def job(self, job_id: str) -> Job | None:
        """Return the job if it is known."""
        return self._jobs.get(job_id)

    def is_live(self, job_id: str) -> bool:
        """Say whether some rank of the job may still save."""
        return job_id in self._jobs and self._jobs[job_id].is_live

    def is_past(self, key: JobKey, session: Session) -> bool:
        """Say whether the job is an earlier life to the caller: dead, or not its own.

        The caller has one of its own if it may save into the same place.
        """
        own = [job.key for job in self if job.has_writer(session)]
        succeeds = any(one.place == key.place for one in own)
        return not self.is_live(key.id) or (succeeds and key not in own)

    def has_yet_to_save(self, place: Place, session: Session) -> JobKey | None:
        """Return the caller's life of the run, if that may save there and never has."""
        here = (job for job in self if job.key.place == place and job.has_writer(session))
        return next((job.key for job in here if job is not self.present(place)), None)

    def present(self, place: Place) -> Job | None:
        """Return the job that may save into *place*."""
        return self._jobs.get(self._present.get(place, ""))

    def join(self, key: JobKey, rank: int, session: Session, *, read_only: bool = False) -> Job:
        """Make *session* one rank of the job; again by the same process: it may write now, or not.

        Raises `FailedPrecondition`.
        """
        job = self._jobs.get(key.id)
        if job is not None and not job.is_live:
            self._drop(job)
            job = None
        if job is None:
            job = self._jobs[key.id] = Job(key, Exchanges(key.world_size, self._volume))
        self._check_joinable(job, key, rank, session)
        if rank not in job.members or not job.members[rank].is_live:
            self._admit(job, rank, session, read_only=read_only)
        elif not read_only:
            job.members[rank].read_only = False
        return job

    def claim(self, job: Job) -> None:
        """Make *job* the one that may save into its place; an earlier life of the run is fenced.

        Raises `PermissionDenied` while another user's job saves there.
        """
        present = self.present(job.key.place)
        if present is not None and present.key.uid != job.key.uid and present.is_live:
            text = f"user {present.key.uid} is saving into {job.key.place}; use another run"
            raise errors.PermissionDenied(text)
        if present is not None and present is not job:
            self._fence(present, job.key.incarnation)
        self._present[job.key.place] = job.key.id

    def member(self, job_id: str, rank: int, session: Session) -> tuple[Job, Member]:
        """Return the job and the caller's place in it; raises `FailedPrecondition`."""
        job = self._jobs.get(job_id)
        member = job.members.get(rank) if job else None
        if job is None or member is None or member.session is not session or member.left:
            text = f"process {session.process.pid} has not joined as rank {rank}; join first"
            raise errors.FailedPrecondition(text)
        check_not_fenced(job)
        return job, member

    def known(self, job_id: str, rank: int, session: Session) -> Member | None:
        """Return the caller's place in the job, None if it never had one; fenced or not."""
        job = self._jobs.get(job_id)
        member = job.members.get(rank) if job else None
        return member if member is not None and member.session is session else None

    def writer(self, job_id: str, rank: int, session: Session) -> tuple[Job, Member]:
        """Return the same as `member`, which must have joined to save."""
        job, member = self.member(job_id, rank, session)
        if member.read_only:
            text = f"rank {rank} joined {job.key.place} only to read; join again to save there"
            raise errors.FailedPrecondition(text)
        return job, member

    def check_open(self) -> None:
        """Raise `Unavailable` if nothing new may begin."""
        if self._is_refusing:
            raise errors.Unavailable("the daemon is stopping; try again when it has restarted")

    def refuse_new(self) -> None:
        """Let nothing new begin, and have nobody stand by: the daemon is stopping."""
        self._is_refusing = True
        for job in self:
            job.exchanges.dismiss()

    def leave(self, job_id: str, rank: int, session: Session) -> None:
        """Let a rank go; unknown ones are no error."""
        job = self._jobs.get(job_id)
        member = job.members.get(rank) if job else None
        if job and member and member.session is session and not member.left:
            member.left = True
            member.unwatch()
            self._on_lost(job, member, f"rank {rank} (pid {session.process.pid}) left the job")
            if not job.is_live:
                self._drop(job)

    def _admit(self, job: Job, rank: int, session: Session, *, read_only: bool) -> None:
        holder = Holder.of(rank, job.key.place, job.key.uid, process=session.process)
        member = Member(rank, session, holder, read_only)
        if rank in job.members:
            job.by_sequence.clear()  # a new process counts its saves anew
        job.members[rank] = member
        job.lost.pop(rank, None)
        member.unwatch = session.on_end(lambda: self._end(job, member))

    def _end(self, job: Job, member: Member) -> None:
        if member.left or job.members.get(member.rank) is not member:
            return
        pid = member.session.process.pid
        job.lost[member.rank] = pid
        reason = f"rank {member.rank} (pid {pid}) died"
        job.exchanges.fail(errors.Aborted(f"{reason} before the ranks had agreed; restart the job"))
        self._on_lost(job, member, reason)
        if not job.is_live:
            self._drop(job)

    def _fence(self, earlier: Job, incarnation: str) -> None:
        earlier.fenced_by = incarnation
        earlier.exchanges.fail(fenced(earlier))
        for member in earlier.members.values():
            if member.is_live:
                self._on_lost(earlier, member, str(fenced(earlier)))

    def _drop(self, job: Job) -> None:
        job.exchanges.close()
        self._jobs.pop(job.key.id, None)
        if self._present.get(job.key.place) == job.key.id:
            del self._present[job.key.place]

    def _check_joinable(self, job: Job, key: JobKey, rank: int, session: Session) -> None:
        check_not_fenced(job)
        if job.key.world_size != key.world_size:
            others = ", ".join(map(str, sorted(job.members)))
            text = (
                f"rank {rank} says the world has {key.world_size} ranks and rank {others} said "
                f"{job.key.world_size}; start every rank with the same world size"
            )
            raise errors.FailedPrecondition(text)
        member = job.members.get(rank)
        if member is not None and member.is_live and member.session is not session:
            text = (
                f"process {member.session.process.pid} is rank {rank} of {key.place} already; "
                f"process {session.process.pid} must be another rank, or use another run"
            )
            raise errors.FailedPrecondition(text)


def fenced(job: Job) -> errors.FailedPrecondition:
    """Return the error that every call of a fenced job gets."""
    return errors.FailedPrecondition(
        f"a newer incarnation ({job.fenced_by}) of {job.key.place.experiment}/"
        f"{job.key.place.run} saves now; this one ({job.key.incarnation}) may not any more"
    )


def check_not_fenced(job: Job) -> None:
    """Raise `FailedPrecondition` if a newer life of the run has begun."""
    if job.fenced_by is not None:
        raise fenced(job)
