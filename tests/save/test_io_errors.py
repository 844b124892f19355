"""The disk fails, or is full, at any call of a save: every rank is told where, and nothing stays.

Nothing is tried again here; `test_failing_place` has what is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import SIZE, Cluster, cluster
from fakes.daemon import short_directory
from fakes.require_real import need_root
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

AT_ONCE: Any = {"persist_retry_s": 0}

# The call that fails, on what, and the path that the ranks are told.
CALLS = [
    ("mkdir", "{attempt}", "{attempt}"),
    ("openat", "{attempt}/__0_0.distcp", "{attempt}/__0_0.distcp"),
    ("fallocate", "{attempt}/__0_0.distcp", "{attempt}/__0_0.distcp"),
    ("ftruncate", "{attempt}/__1_0.distcp", "{attempt}/__1_0.distcp"),
    ("pwrite64", "{attempt}/__1_0.distcp", "{attempt}/__1_0.distcp"),
    ("fsync", "{attempt}/__0_0.distcp", "{attempt}/__0_0.distcp"),
    ("pwrite64", "{attempt}/__0_0.distcp.sums", "{attempt}/__0_0.distcp.sums"),
    ("fsync", "{attempt}/__0_1.distcp.sums", "{attempt}/__0_1.distcp.sums"),
    ("fsync", "{attempt}", "{attempt}"),
    ("pwrite64", "{attempt}/manifest.json", "{attempt}/manifest.json"),
    ("fsync", "{attempt}/manifest.json", "{attempt}/manifest.json"),
    ("rename", "{attempt}", "{step}"),
    ("fsync", "{run}", "{run}"),
]


class Saving:
    """Two ranks of one node, which save step after step."""

    def __init__(self, its: Cluster) -> None:
        self.its = its
        self.daemon = its.daemons[0]
        self.client = self.daemon.client()
        self.sequence = self.step = 0
        self.excused: set[str | None] = set()

    @property
    def salt(self) -> str:
        """What the images that change are made with in this save."""
        return f"{self.sequence}-"

    def stage(self, *, again: bool = False) -> str:
        """Stage another step, or the same *again*; return the attempt."""
        self.sequence += 1
        self.step += not again
        how: dict[str, Any] = {"plan_hash": self.salt, "replace": again}
        return self.its.stage(self.sequence, self.step, salt=self.salt, **how)

    def end(self) -> list[Any]:
        """Seal, and return what each rank is told."""
        self.its.seal()
        self.its.watch()
        return self.its.told()

    def save(self) -> None:
        self.stage()
        assert [told["state"] for told in self.end()] == ["COMMITTED"] * 2
        assert self.its.is_whole(self.step, self.salt)

    def paths(self, attempt: str, *names: str) -> list[str]:
        run, step = self.its.run, self.its.run / f"step-{self.step}"
        return [
            name.format(attempt=run / ".attempts" / attempt, step=step, run=run) for name in names
        ]

    def check_goes_on(self, undeletable: str | None = None) -> None:
        """The memory is free again, nothing is left, and the next save is there.

        An attempt that was *undeletable* because of the fault may be left to the run's next life.
        """
        self.save()
        arena = self.client.status().arena
        assert arena.slots == arena.idle_slots
        eventually(lambda: set(self.its.left()) <= self.excused | {undeletable})
        self.excused |= set(self.its.left())


@pytest.fixture(scope="module")
def saving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saving]:
    root = tmp_path_factory.mktemp("errors")
    with short_directory() as short, cluster(short, root, 1, each=2, **AT_ONCE) as its:
        one = Saving(its)
        one.save()
        yield one


@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
@pytest.mark.parametrize(("call", "where", "named"), CALLS)
def test_a_call_that_fails_ends_the_save_by_name_and_the_next_is_fine(
    saving: Saving, call: str, where: str, named: str, code: str
) -> None:
    attempt = saving.stage()
    where, named = saving.paths(attempt, where, named)
    with tampered(saving.daemon.pid, f"{call}:error={code}", on=[Path(where)]):
        told = saving.end()
        assert saving.step not in saving.its.steps()
    assert told[0] == told[1]
    assert told[0]["state"] == "ABORTED"
    kind, advice = {
        "EIO": ("Unavailable", "check it and try again"),
        "ENOSPC": ("ResourceExhausted", "free some space or use another place"),
    }[code]
    assert told[0]["error"] == kind
    assert f" {named}: " in told[0]["reason"]
    assert advice in told[0]["reason"]
    saving.check_goes_on(attempt if call == "rename" else None)


# What fails, for what; where there is `renameat2:error=EINVAL` names cannot be exchanged.
REPLACING = [
    (["renameat2:error=EIO"], ["{attempt}"]),
    (["fsync:error=EIO"], ["{run}"]),
    (["renameat2:error=EINVAL", "rename:error=EIO"], ["{attempt}", "{step}"]),
    (["renameat2:error=EINVAL", "rename:error=EIO"], ["{attempt}"]),
]


@pytest.mark.parametrize(("failing", "where"), REPLACING)
def test_a_step_that_cannot_be_replaced_stays_what_it_was(
    saving: Saving, failing: list[str], where: list[str]
) -> None:
    saving.save()
    old = saving.salt
    attempt = saving.stage(again=True)
    with tampered(saving.daemon.pid, *failing, on=[Path(p) for p in saving.paths(attempt, *where)]):
        told = saving.end()
    assert [(one["state"], one["error"]) for one in told] == [("ABORTED", "Unavailable")] * 2
    assert saving.its.is_whole(saving.step, old)
    saving.check_goes_on(attempt)
    assert saving.its.is_whole(saving.step - 1, old)


@pytest.fixture
def small(short_path: Path, tmp_path: Path) -> Iterator[Saving]:
    """The same on a disk that holds two steps."""
    need_root()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", tmp_path], check=True)
    try:
        with cluster(short_path, tmp_path, 1, each=2, **AT_ONCE) as its:
            yield Saving(its)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_disk_that_fills_up_while_a_step_is_written_ends_it_with_the_numbers(
    small: Saving,
) -> None:
    small.save()
    attempt = small.stage()
    filler = small.its.root / "filler"
    (image,) = small.paths(attempt, "{attempt}/__0_0.distcp")
    with tampered(small.daemon.pid, f"fsync:{STALLS}", on=[Path(image)]):
        small.its.seal()
        small.its.watch()
        eventually(lambda: Path(image).exists() and Path(image).stat().st_size == SIZE)
        fill(filler)
    told = small.its.told()
    assert told[0] == told[1]
    assert (told[0]["state"], told[0]["error"]) == ("ABORTED", "ResourceExhausted")
    assert f"{image}.sums: " in told[0]["reason"]
    assert "0 are free; free some space or use another place" in told[0]["reason"]
    assert small.its.steps() == [1]

    small.stage()  # now it is known before anything is written
    told = small.end()
    assert (told[0]["state"], told[0]["error"]) == ("ABORTED", "ResourceExhausted")
    assert small.its.steps() == [1]

    filler.unlink()
    small.check_goes_on()


def fill(path: Path) -> None:
    """Leave no byte of the disk free."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
