"""Several nodes: a daemon each, and ranks of one job that speak the save protocol to theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fakes.daemon import Daemon
from fakes.rank import Rank, content

SIZE = (1 << 20) + 77


class Cluster:
    """One rank on each of some nodes, below one root that all of them share."""

    def __init__(self, daemons: Sequence[Daemon], ranks: Sequence[Rank], root: Path) -> None:
        self.daemons, self.ranks, self.root = list(daemons), list(ranks), root
        for rank in ranks:
            rank.begin("join")
        self.names: list[str] = [rank.answer() for rank in ranks]

    @property
    def run(self) -> Path:
        return self.root / "e" / "r"

    def images(self, rank: int) -> list[tuple[str, int]]:
        mine = [(f"__{rank}_0.distcp", SIZE)]
        return [*mine, (".metadata", 100)] if rank == 0 else mine

    @property
    def plan(self) -> list[tuple[str, int]]:
        return [image for rank in self.ranks for image in self.images(rank.rank)]

    def open(self, sequence: int, step: int, *, only: Sequence[int] = (), **options: Any) -> str:
        for rank in self._some(only):
            rank.begin("open", sequence=sequence, step=step, daemons=self.names, **options)
        attempts = {rank.answer()[0] for rank in self._some(only)}
        assert len(attempts) == 1, "every daemon calls it the same"
        return attempts.pop()

    def stage(
        self, sequence: int, step: int = 7, *, salt: str = "", only: Sequence[int] = (), **how: Any
    ) -> str:
        """Every rank copies, none seals; return what the attempt is called."""
        attempt = self.open(sequence, step, only=only, **how)
        for rank in self._some(only):
            rank.ask("reserve", images=self.images(rank.rank))
            rank.ask("copy", salt=salt)
        return attempt

    def seal(self, *, only: Sequence[int] = ()) -> None:
        for rank in self._some(only):
            rank.ask("seal", plan=self.plan if rank.rank == 0 else None, metrics={"loss": 0.5})

    def save(self, sequence: int, step: int = 7, **how: Any) -> str:
        attempt = self.stage(sequence, step, **how)
        self.seal()
        assert self.outcomes() == ["COMMITTED"] * len(self.ranks)
        return attempt

    def watch(self, *, only: Sequence[int] = ()) -> None:
        """Have the ranks follow the attempt; `told` says what they heard."""
        for rank in self._some(only):
            rank.begin("watch")

    def told(self, *, only: Sequence[int] = ()) -> list[Any]:
        return [rank.answer() for rank in self._some(only)]

    def outcomes(self, *, only: Sequence[int] = ()) -> list[str]:
        self.watch(only=only)
        return [told["state"] for told in self.told(only=only)]

    def is_whole(self, step: int = 7, salt: str = "") -> bool:
        """Every image is there, byte for byte, and the manifest knows it, and nothing else is."""
        directory = self.run / f"step-{step}"
        manifest = json.loads((directory / "manifest.json").read_bytes())
        images = dict(image for rank in self.ranks for image in self.images(rank.rank))
        assert {name: one["size_bytes"] for name, one in manifest["images"].items()} == images
        assert all((directory / n).read_bytes() == content(salt + n, s) for n, s in images.items())
        expected = {"manifest.json", *images, *(f"{name}.sums" for name in images)}
        assert {path.name for path in directory.iterdir()} - {".receipts"} == expected
        return True

    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.run.glob("step-*"))

    def left(self) -> list[str]:
        """What is there of attempts that are not committed."""
        return sorted(path.name for path in (self.run / ".attempts").iterdir())

    def _some(self, only: Sequence[int]) -> list[Rank]:
        return [rank for rank in self.ranks if not only or rank.rank in only]


@contextmanager
def cluster(
    short_path: Path, root: Path, size: int, *, incarnation: str = "i", **settings: object
) -> Iterator[Cluster]:
    """Start *size* nodes whose daemons have *settings*."""
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(Daemon(short_path / str(node), **settings)) for node in range(size)
        ]
        ranks = [
            stack.enter_context(Rank(daemon.socket, root, number, size, incarnation=incarnation))
            for number, daemon in enumerate(daemons)
        ]
        yield Cluster(daemons, ranks, root)
