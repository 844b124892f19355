"""A small file costs one request and one thread, and keeps every promise that a big one does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from ckptd_daemon.fetch.call import Handed, Request
from ckptd_daemon.sessions import Process
from ckptd_daemon.transfer.openings import SMALL_BYTES
from ckptd_proto import errors
from fakes.node import FETCH_S, Node, clean
from fakes.origin import Fault, Origin
from fetch.test_contract import OUTCOMES, RIGHT

REFUSALS = {Fault.THROTTLE, Fault.THROTTLE_UNTIL, Fault.UNAVAILABLE, Fault.OVERLOADED}
FIRST_BYTES = f"bytes=0-{SMALL_BYTES - 1}"
NOBODY = 65534


@pytest.fixture(scope="module")
def content(data: bytes) -> bytes:
    return data[: (2 << 20) + 5]  # ends off a page


async def fetch_many(node: Node, *urls: str, uid: int | None = None) -> list[Path]:
    """The paths of *urls*, asked for in one go."""
    me = Process.of_pid(os.getpid(), os.getuid())
    holder = me if uid is None else Process(0, 0, uid)
    landed: dict[int, Handed] = {}
    with node.fetcher.calling_many([Request(url) for url in urls], holder) as batch:
        with anyio.fail_after(FETCH_S):
            while not batch.is_done:
                landed |= dict(await batch.news(1))
    return [landed[index].path for index in range(len(urls))]


async def test_each_of_many_costs_one_request(short_path: Path, origin: Origin) -> None:
    names = [f"part-{number}" for number in range(40)]
    for name in names:
        origin.put(name, name.encode() * 1000)
    async with clean(short_path, origin) as node:
        paths = await fetch_many(node, *map(origin.url, names))
        assert [path.read_bytes() for path in paths] == [name.encode() * 1000 for name in names]
    assert sorted(origin.requests) == sorted((name, FIRST_BYTES) for name in names)


async def test_connections_are_used_again_and_never_more_than_a_host_may_have(
    short_path: Path, origin: Origin
) -> None:
    names = [f"part-{number}" for number in range(60)]
    for name in names:
        origin.put(name, b"x" * 10_000)
    async with clean(short_path, origin, streams=4, streams_max=4) as node:
        await fetch_many(node, *map(origin.url, names))
    assert origin.connections_max <= 4
    assert len(set(origin.ports)) <= 8


async def test_what_is_known_is_asked_for_by_its_first_byte_and_is_not_sent_again(
    short_path: Path, origin: Origin, content: bytes
) -> None:
    for name in ("a", "b"):
        origin.put(name, content)
    async with clean(short_path, origin) as node:
        await fetch_many(node, origin.url("a"), origin.url("b"))
        sent_bytes = origin.sent_bytes
        await fetch_many(node, origin.url("a"), origin.url("b"))
    assert origin.sent_bytes - sent_bytes < 10_000
    assert sorted(origin.requests[2:]) == [("a", "bytes=0-0"), ("b", "bytes=0-0")]


async def test_one_alone_is_asked_for_by_its_first_byte_and_comes_by_one_request(
    short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content)
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == content
    assert origin.requests == [("model", "bytes=0-0"), ("model", f"bytes=0-{len(content) - 1}")]


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, SMALL_BYTES, SMALL_BYTES + 1, 17 << 20])
async def test_every_size_is_right(
    size_bytes: int, short_path: Path, origin: Origin, data: bytes
) -> None:
    for name in ("a", "b"):
        origin.put(name, data[:size_bytes])
    async with clean(short_path, origin) as node:
        found = await fetch_many(node, origin.url("a"), origin.url("b"))
        assert [path.read_bytes() for path in found] == [data[:size_bytes]] * 2


async def test_who_leaves_takes_what_was_on_its_way_along(
    short_path: Path, origin: Origin, content: bytes
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        origin.put(name, content)
    origin.hold(after_bytes=1 << 20)
    async with clean(short_path, origin) as node:
        me = Process.of_pid(os.getpid(), os.getuid())
        requests = [Request(origin.url(name)) for name in names]
        with node.fetcher.calling_many(requests, me) as batch:
            await batch.news(0.1)
            await to_thread.run_sync(origin.held.wait, FETCH_S)
        with anyio.fail_after(20):
            await node.fetcher.wait_idle()
        origin.release()
        assert node.entries("partials") == node.entries("blobs") == []


async def test_bytes_that_nobody_comes_for_give_their_seat_back(
    short_path: Path, origin: Origin, content: bytes
) -> None:
    for number in range(3):
        origin.put(f"model?KeyName=k&Expires=9&Signature={number}", content)
    url = f"{origin.url('model')}?KeyName=k&Expires=9&Signature="
    signed = [f"{url}{number}" for number in range(3)]
    async with clean(short_path, origin, streams=1, streams_max=1) as node:
        found = await fetch_many(node, *signed)  # one object, asked for by three who may have it
        assert len(set(found)) == 1
        assert len(node.entries("blobs")) == 1


async def test_other_users_are_not_brought_to_a_private_address(
    short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content)
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.PermissionDenied, match="private address"):
            await fetch_many(node, origin.url("model"), origin.url("other"), uid=NOBODY)
    assert origin.requests == []


async def found(node: Node, url: str, *, is_many: bool) -> Path:
    """The path of *url*, asked for alone or as one of many."""
    if not is_many:
        return await node.fetch(url)
    return (await fetch_many(node, url, url + "?other"))[0]


async def outcomes(
    root: Path, origin: Origin, content: bytes, times: int, *, is_many: bool
) -> dict[Fault, str]:
    """What becomes of files whose first bodies, so many, have a fault: all at once, one for each."""
    came: dict[Fault, str] = {}

    async def fetch(node: Node, origin: Origin, fault: Fault) -> None:
        file = origin.put(fault.name, content)
        origin.put(f"{fault.name}?other", b"other")
        file.faults = [fault] * times
        try:
            path = await found(node, origin.url(fault.name), is_many=is_many)
            came[fault] = "right" if path.read_bytes() == content else "wrong"
        except errors.CkptdError as error:
            came[fault] = f"{type(error).__name__}: {error}"
        assert times > 1 or not file.faults, fault

    with Origin() as busy:  # refuses, and so is left to few connections by everybody
        retries = 5 if times == 1 else 2  # a machine that is busy costs some, too
        async with (
            clean(root, origin, busy, retries=retries) as node,
            anyio.create_task_group() as tasks,
        ):
            for fault in OUTCOMES:
                tasks.start_soon(fetch, node, busy if fault in REFUSALS else origin, fault)
    return came


@pytest.mark.parametrize("is_many", [False, True], ids=["alone", "among others"])
async def test_a_fault_of_the_first_body_costs_time_and_no_byte(
    is_many: bool, short_path: Path, origin: Origin, content: bytes
) -> None:
    came = await outcomes(short_path, origin, content, 1, is_many=is_many)
    assert came == dict.fromkeys(OUTCOMES, "right")


async def test_a_fault_of_every_body_has_its_outcome(
    short_path: Path, origin: Origin, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BORNE_S", 1.0)
    came = await outcomes(short_path, origin, content, 1000, is_many=True)
    for fault, (outcome, _) in OUTCOMES.items():
        if outcome is RIGHT or fault is Fault.CHURN:  # which cannot come between one reply
            assert came[fault] == "right", fault
        else:
            error, words = outcome
            assert came[fault].startswith(f"{error.__name__}: "), (fault, came[fault])
            assert re.search(words, came[fault]), (fault, came[fault])


async def test_an_answer_that_does_not_begin_is_given_up_however_long_it_might_pause_later(
    short_path: Path, origin: Origin
) -> None:
    for name in ("a", "b"):
        origin.put(name, name.encode() * 1000).faults = [Fault.MUTE]
    async with clean(short_path, origin, first_byte_s=0.5, stall_s=600) as node:
        with anyio.fail_after(20):
            paths = await fetch_many(node, origin.url("a"), origin.url("b"))
    assert sorted(origin.requests[:2]) == [("a", FIRST_BYTES), ("b", FIRST_BYTES)]
    assert [path.read_bytes()[:1] for path in paths] == [b"a", b"b"]
