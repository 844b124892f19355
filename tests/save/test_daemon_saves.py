"""What the daemon promises of saves, tried with real processes that speak the protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.rank import Rank, content

World = Callable[..., list[Rank]]
SIZE = (5 << 20) + 123


@pytest.fixture
def world(daemon: Daemon, tmp_path: Path) -> Iterator[World]:
    """Makes the ranks of a job, joined."""
    with ExitStack() as stack:

        def make(size: int, *, root: Path = tmp_path, **place: str) -> list[Rank]:
            ranks = [
                stack.enter_context(Rank(daemon.socket, root, rank, size, **place))
                for rank in range(size)
            ]
            for rank in ranks:
                rank.begin("join")
            for rank in ranks:
                rank.answer()
            return ranks

        yield make


def images_of(rank: int, size: int = SIZE) -> list[tuple[str, int]]:
    return [
        (f"__{rank}_0.distcp", size),
        *([(".metadata", 100), ("index.json", 0)] if rank == 0 else []),
    ]


def plan_of(world_size: int, size: int = SIZE) -> list[tuple[str, int]]:
    return [image for rank in range(world_size) for image in images_of(rank, size)]


def stage(
    ranks: list[Rank], sequence: int = 0, step: int = 7, size: int = SIZE, **options: object
) -> None:
    """All ranks copy, none seals."""
    for rank in ranks:
        rank.ask("open", sequence=sequence, step=step, **options)
    for rank in ranks:
        rank.ask("reserve", images=images_of(rank.rank, size))
        rank.ask("copy")


def seal(ranks: list[Rank], size: int = SIZE, **options: object) -> None:
    for rank in ranks:
        plan = plan_of(len(ranks), size) if rank.rank == 0 else None
        rank.ask("seal", plan=plan, **(options if rank.rank == 0 else {}))


def check_step(directory: Path, world_size: int, size: int = SIZE) -> None:
    """Every image is there, byte for byte, and the manifest knows it."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    for name, length in plan_of(world_size, size):
        assert (directory / name).read_bytes() == content(name, length)
        assert manifest["images"][name]["size_bytes"] == length


def test_what_all_ranks_staged_is_committed(world: World, tmp_path: Path) -> None:
    ranks = world(2)
    stage(ranks)
    seal(ranks, metrics={"loss": 0.5})
    assert ranks[1].ask("watch")["state"] == "COMMITTED"
    check_step(tmp_path / "e" / "r" / "step-7", 2)
    assert not list((tmp_path / "e" / "r" / ".attempts").iterdir())
