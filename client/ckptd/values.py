"""The values users see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FlightStatus:
    """A fetch on its way."""

    key: str
    """Of the blob that it will be; empty while its version is asked for."""
    object: str
    phase: str
    done_bytes: int
    total_bytes: int | None
    """None while the origin has not said."""
    waiters: int
    streams: int
    reason: str
    """Why it waits, or is no faster, in words; empty if nothing holds it up."""
    cause: str = ""
    """In one word: `origin`, `throttled`, `disk`, `quota`, `hash`, `limit` or `streams`; while it moves,
    its bottleneck: `limit`, `network`, `disk` or `cpu`."""
    rate_bytes_per_s: float = 0.0
    """Over the last few seconds; 0 unless bytes come."""
    eta_s: float | None = None
    """Seconds until all bytes are here at this rate; None if nobody can tell."""


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """A save on its way."""

    id: str
    root: str
    experiment: str
    run: str
    step: int
    state: str
    """`open`, `staged`, `local` or `durable`; what is `committed` or `aborted` is gone soon."""
    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float = 0.0
    """Over the last few seconds; 0 unless it is being written."""
    eta_s: float | None = None
    """Seconds until it is written at this rate; None if nobody can tell."""
    note: str = ""
    """What there is to say besides: why it waits, say."""


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The node's cache of blobs."""

    blobs: int
    leases: int
    used_bytes: int
    quota_bytes: int | None
    """None: as far as the disk goes."""
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ArenaStatus:
    """The shared memory that saves are staged in."""

    slots: int
    idle_slots: int
    """Kept warm for the next save, and given up for others if need be."""
    used_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Miss:
    """A prefetch that failed: told for a day, or until the same is fetched."""

    id: str
    """As in the daemon's log."""
    object: str
    error: str
    """The class, as in `ckptd.errors`."""
    sentence: str
    """What happened, and what to do."""
    at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How much of a run's work is safe."""

    root: str
    experiment: str
    run: str
    step: int | None
    """What was saved last; None if nothing is committed yet."""
    committed_at: float | None
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class FatedSave:
    """What became of a save when there was little time."""

    root: str
    experiment: str
    run: str
    step: int
    fate: str
    """`saved`; `superseded` by a newer step that is saved; `lost`; `delivered` (written here, and the
    other nodes can finish it); `staged` (in memory, where the next start finds it); `open` (some
    rank has not staged it)."""
    why: str
    """In words, if there is more to say."""


@dataclass(frozen=True, slots=True)
class PreemptionStatus:
    """The daemon is stopping, or its node is about to go away."""

    cause: str
    left_s: float
    takes_node: bool
    """The node goes away, and what only its memory has."""
    saves: tuple[FatedSave, ...]
    """What was in hand when it began, and what came later."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """A node of the job is about to go away."""

    cause: str
    left_s: float
    """Seconds until it does; 0 if that is over."""


@dataclass(frozen=True, slots=True)
class SaveRecord:
    """Where the time of a committed save went, in seconds."""

    step: int
    size_bytes: int
    """Of all ranks."""
    blocked_s: float
    """The training waited: for the plan to be agreed, then for room and the copy."""
    plan_s: float
    stage_s: float
    touched_bytes: int
    """Memory that was touched for the first time meanwhile; 0 after `prepare`."""
    waited_s: float
    """Staged, for the saves before it to end."""
    persist_s: float
    commit_s: float
    copied_s: float = 0.0
    """Training again, until what optimizers own on a GPU was copied; 0 if all was, before."""
    step_inflation: float | None = None
    """How much longer a step took meanwhile, as a share of its usual time: 0.1 is a tenth. By the
    median of at least three steps on either side, of the first optimizer in the state; None if
    there is none, or too few steps."""

    @property
    def bytes_per_s(self) -> float:
        """How fast it was made durable."""
        return self.size_bytes / self.persist_s if self.persist_s else 0.0


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """What a daemon is, and does now."""

    version: str
    pid: int
    uid: int
    socket: str
    state_dir: str
    private: bool
    """Started on demand: ends by itself when nobody needs it."""
    idle: bool
    """Nothing is staged, leased or in flight."""
    stopping: bool
    uptime_s: float
    sessions: int
    """Client processes alive."""
    flights: tuple[FlightStatus, ...]
    attempts: tuple[AttemptStatus, ...]
    cache: CacheStatus
    arena: ArenaStatus
    runs: tuple[RunStatus, ...] = ()
    """Those saved, or joined to be, through this daemon since its start."""
    misses: tuple[Miss, ...] = ()
    """What was to be fetched ahead of need, and could not be."""
    preemption: PreemptionStatus | None = None
    """None while there is time."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the daemon."""

    name: str
    value: object
    """As JSON has it; secrets are left out."""
    changeable: bool
    """`configure` may change it while the daemon runs."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """What is known to be bad of a committed checkpoint."""

    file: str
    chunk: int | None
    """Of that file; None if it is bad as a whole."""
    what: str
    """In words."""
    found_at: float
    """Seconds since the epoch."""
    is_newer: bool = False
    """Nothing is known to be bad: a later ckptd wrote it, and this one cannot read it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: complete, durable, and loadable by stock torch from `path`."""

    path: Path
    experiment: str
    run: str
    step: int
    uuid: str
    """Of the attempt that was committed."""
    size_bytes: int
    metrics: Mapping[str, float]
    committed_at: float
    """Seconds since the epoch, by the committing node's clock."""
    pinned: bool = False
    """It stays whatever the retention of its run says."""
    latest: bool = field(default=False, compare=False)
    """When it was listed: saved last in its run, whatever its step; not a corrupt one."""
    corrupt: Corruption | None = field(default=None, compare=False)
    """When it was listed: why it is nobody's latest or best; None if nothing is known to be bad."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is."""

    phase: str
    """`resolving`, `waiting` (for room on disk), `downloading`, `verifying` or `retrying`."""
    done_bytes: int
    total_bytes: int | None
    """None while the origin has not said."""
    streams: int
    reason: str
    """Why it waits, or is no faster, in words; empty if nothing holds it up."""
    cause: str = ""
    """In one word: `origin`, `throttled`, `disk`, `quota`, `hash`, `limit` or `streams`; while it moves,
    its bottleneck: `limit`, `network`, `disk` or `cpu`."""
    rate_bytes_per_s: float = 0.0
    """Over the last few seconds; 0 unless bytes come."""
    eta_s: float | None = None
    """Seconds until all bytes are here at this rate; None if nobody can tell."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    """As the file calls it, such as `BF16`."""
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a blob is like on the disk."""

    key: str
    object: str
    size_bytes: int
    chunks: int
    damaged_chunks: tuple[int, ...]
    """Those that are not what was published; fetching the object again brings these only."""
    quarantine: Path | None
    """Where a damaged one lies now."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A verified file in the node's cache."""

    key: str
    object: str
    version: str
    path: Path
    size_bytes: int
    sha256: str | None
    verification: str
    """What it was checked against: `sha256`, `store_checksum` or `transport`."""
    leases: int
    used_at: float
    """Seconds since the epoch."""
