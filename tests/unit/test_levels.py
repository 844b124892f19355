"""What was learned of hosts outlives a restart, and nothing worse than its loss can happen to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.transfer.hosts import Hosts
from ckptd_daemon.transfer.levels import FORMAT, HOSTS_MAX, LEARNED_S, Levels

NOW = 1_000_000_000.0
URL = "https://origin:443/model"


def hosts(levels: Mapping[str, int]) -> Hosts:
    found = Hosts(start=8, streams_max=64)
    found.remember(levels)
    return found


def level(found: Hosts, url: str = URL) -> int:
    with found.share(url, lambda: 1) as share:
        while share.take_nowait():
            pass
        return share.seats


async def life(path: Path, *throttled: str, now: float = NOW) -> Hosts:
    """What a daemon knows that was throttled, and then ended in order."""
    levels = Levels(path, lambda: now)
    found = hosts(levels.load())
    for url in throttled:
        found.throttled(url)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(levels.keep, found)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return found


async def test_a_level_that_fell_is_where_the_next_life_begins(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    assert level(await life(path, URL)) == 4
    assert level(await life(path)) == 4
    assert level(await life(path), "https://other:443/model") == 8


async def test_it_is_believed_for_a_while_only(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    await life(path, URL)
    assert level(await life(path, now=NOW + LEARNED_S / 2)) == 4
    assert level(await life(path, now=NOW + LEARNED_S + 1)) == 8
    assert level(await life(path, now=NOW - 1)) == 8, "it comes from the future"


async def test_it_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    await life(path, *(f"https://host{n}/model" for n in range(HOSTS_MAX + 10)))
    noted = json.loads(path.read_bytes())["hosts"]
    assert [host for host, _, _ in noted] == [f"https://host{n}:443" for n in range(10, 266)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"format": 1, "hosts": [["a"]]}', b'{"format": 1, "hosts": 3}'],
)
async def test_what_is_damaged_is_learned_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hosts.json"
    path.write_bytes(content)
    assert level(await life(path, URL)) == 4
    assert level(await life(path)) == 4


@pytest.mark.parametrize("found", [0, -3])
async def test_no_level_is_below_one(tmp_path: Path, found: int) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps({"format": FORMAT, "hosts": [["https://origin:443", found, NOW]]}))
    assert level(await life(path)) == 8


async def test_what_a_later_version_wrote_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(text := '{"format": 2, "hosts": "otherwise"}')
    assert level(await life(path, URL)) == 4
    assert path.read_text() == text


async def test_a_disk_that_cannot_keep_it_ends_nothing(tmp_path: Path) -> None:
    assert level(await life(tmp_path / "gone" / "hosts.json", URL)) == 4
