"""Two nodes that share a directory only, each in namespaces of its own, and what they do there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptd_proto import errors
from fakes.cluster import Cluster, cluster
from fakes.daemon import short_directory
from fakes.netdisk.mount import Mount, mounts

LEADER, OTHER = 0, 1

# Which call, for what, on which nodes: all that a node does with the directory in one save.
CALLS = {
    "making the attempt": ("mkdir", "*.new", [LEADER]),
    "naming the attempt": ("rename", "*.new", [LEADER]),
    "looking for the attempt": ("getattr", "*/.attempts/*-????????????????", [LEADER, OTHER]),
    "making a place for images": ("mkdir", "*/.????????????", [LEADER, OTHER]),
    "making an image": ("create", "*_0.distcp", [LEADER, OTHER]),
    "writing an image": ("write", "*_0.distcp", [LEADER, OTHER]),
    "syncing an image": ("fsync", "*_0.distcp", [LEADER, OTHER]),
    "linking an image": ("link", "*_1.distcp", [LEADER, OTHER]),
    "writing sums": ("write", "*.sums", [LEADER, OTHER]),
    "naming an image": ("rename", "*_0.distcp", [LEADER, OTHER]),
    "deleting the place for images": ("rmdir", "*/.????????????", [LEADER, OTHER]),
    "writing a receipt": ("write", "*/.receipts/*", [LEADER, OTHER]),
    "naming a receipt": ("rename", "*/.receipts/*", [LEADER, OTHER]),
    "reading receipts": ("open", "*/.receipts/*", [LEADER]),
    "reading the fence": ("open", "*/.fence.json", [LEADER]),
    "writing the manifest": ("write", "*manifest.json*", [LEADER]),
    "naming the step": ("rename", "*/step-*", [LEADER]),
    "syncing the step's name": ("fsyncdir", "/e/r", [LEADER, OTHER]),
    "reading the manifest": ("read", "*/manifest.json", [LEADER, OTHER]),
    "deleting what is left": ("unlink", "*.gone/*", [LEADER]),
}


class Shared:
    """Two nodes, and the directory as each of them sees it."""

    def __init__(self, nodes: Cluster, seen: list[Mount]) -> None:
        self.nodes, self.seen = nodes, seen
        self.sequence = self.step = 0

    @property
    def salt(self) -> str:
        """What the images that change are made with in this save."""
        return f"{self.sequence}-"

    def begin(self, *, again: bool = False) -> None:
        """Have every rank save another step, or the same *again*, without waiting for it.

        `told` says what that has become.
        """
        self.sequence += 1
        self.step += not again
        how = {"plan_hash": self.salt, "replace": again, "daemons": self.nodes.names}
        for rank in self.nodes.ranks:
            rank.begin(
                "save",
                open=how | {"sequence": self.sequence, "step": self.step},
                images=self.nodes.images(rank.rank),
                copy={"salt": self.salt, "still": self.nodes.still(rank.rank)},
                seal={"plan": self.nodes.plan if rank.rank == 0 else None},
            )

    def told(self, node: int) -> Any:
        """Return the outcome that the rank there is told."""
        try:
            return self.nodes.ranks[node].answer()
        except errors.CkptdError as error:
            return {"state": "ABORTED", "reason": str(error), "error": type(error).__name__}

    def check(self, *told: Any) -> str:
        """All were told the same, and that is what there is; return it."""
        (state,) = {one["state"] for one in told}
        if state == "COMMITTED":
            assert self.nodes.is_whole(self.step, self.salt)
        else:
            assert all(one["reason"] and one["error"] != "Internal" for one in told), told
            assert self.step not in self.nodes.steps()
        return state

    def save(self, *, again: bool = False) -> None:
        self.begin(again=again)
        assert self.check(self.told(LEADER), self.told(OTHER)) == "COMMITTED"


@contextmanager
def apart(place: Path) -> Iterator[Shared]:
    """Give two nodes in haste, which have saved a step in the directory *place*."""
    truth, root = place / "truth", place / "root"
    with short_directory() as short, mounts(truth, root, 2) as seen:
        within = [mount.within for mount in seen]
        settings = {"takeover_s": 1, "peers_wait_s": 15, "persist_retry_s": 0}
        with cluster(short, truth, 2, at=root, within=within, **settings) as nodes:
            one = Shared(nodes, seen)
            one.save()
            yield one
