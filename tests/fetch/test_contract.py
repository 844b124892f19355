"""The contract of the byte paths: what holds of one holds of the other, over plain HTTP and TLS.

Whatever the origin does, the caller gets the right bytes or a typed error; nothing is left.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from ckptd_daemon.transfer.stream import Stream
from ckptd_proto import errors
from fakes.certificates import Authority
from fakes.node import Node, clean
from fakes.origin import FIRST_BYTE, Fault, File, Origin
from fakes.tls import TlsFront

Outcome = tuple[type[errors.CkptdError], str] | None
RIGHT: Outcome = None
GIVEN_UP: Outcome = (errors.Unavailable, "given up after 3 tries .* try again later")
NO_HTTP: Outcome = (errors.Unavailable, "given up after 3 tries .* the answer is not valid HTTP")
CHANGES: Outcome = (errors.Aborted, "changed 2 times .* ask again when it is settled")
NO_CREDENTIALS: Outcome = (
    errors.Unauthenticated,
    "401: it wants credentials, .* put them into the URL .* ~/.netrc",
)
FORBIDDEN: Outcome = (
    errors.PermissionDenied,
    "403: these credentials may not read it; ask its owner",
)
GONE: Outcome = (errors.NotFound, "404: there is no such object; check how it is spelt")
ENCODED: Outcome = (
    errors.FailedPrecondition,
    "gzip-encoded although the plain bytes were asked for; have it served without",
)
CIRCLES: Outcome = (
    errors.FailedPrecondition,
    "more than 10 redirects.* give credentials, or the URL",
)
ENDLESS: Outcome = (
    errors.FailedPrecondition,
    "neither the length nor the end of its reply.* serve it with",
)
NO_WAY: Outcome = (
    errors.FailedPrecondition,
    "(416|501), which is no way to send a file; see with `curl -v`",
)

OUTCOMES: dict[Fault, tuple[Outcome, Outcome]] = {
    # the fault: when every body has it, when every answer has it
    Fault.NONE: (RIGHT, RIGHT),
    Fault.NO_RANGES: (RIGHT, RIGHT),
    Fault.NO_LENGTH: (RIGHT, RIGHT),
    Fault.NO_LABEL: (RIGHT, RIGHT),
    Fault.NO_TOTAL: (RIGHT, RIGHT),
    Fault.OTHER_RANGE: (RIGHT, RIGHT),
    Fault.OTHER_TOTAL: (CHANGES, CHANGES),
    Fault.LABELLED_200: (RIGHT, RIGHT),
    Fault.MULTIPART: (RIGHT, RIGHT),
    Fault.LONGER: (RIGHT, RIGHT),
    Fault.SHORTER: (RIGHT, RIGHT),
    Fault.SURPLUS: (RIGHT, RIGHT),
    Fault.OVERLONG: (GIVEN_UP, GIVEN_UP),
    Fault.UNSATISFIABLE: (NO_WAY, NO_WAY),
    Fault.NO_TAIL: (RIGHT, RIGHT),
    Fault.CHURN: (CHANGES, CHANGES),
    Fault.GZIP: (ENCODED, ENCODED),
    Fault.TRUNCATE: (GIVEN_UP, GIVEN_UP),
    Fault.RESET: (GIVEN_UP, GIVEN_UP),
    Fault.STALL: (GIVEN_UP, GIVEN_UP),
    Fault.DRIBBLE: (GIVEN_UP, GIVEN_UP),
    Fault.MUTE: (GIVEN_UP, GIVEN_UP),
    Fault.HANG_UP: (GIVEN_UP, GIVEN_UP),
    Fault.ONE_SHOT: (RIGHT, RIGHT),
    Fault.UNFRAMED: (ENDLESS, ENDLESS),
    Fault.GARBAGE: (NO_HTTP, NO_HTTP),
    Fault.LONG_HEADERS: (NO_HTTP, NO_HTTP),
    Fault.THROTTLE: (GIVEN_UP, GIVEN_UP),
    Fault.THROTTLE_UNTIL: (GIVEN_UP, GIVEN_UP),
    Fault.UNAVAILABLE: (GIVEN_UP, GIVEN_UP),
    Fault.OVERLOADED: (GIVEN_UP, GIVEN_UP),
    Fault.CUT_OFF: (GIVEN_UP, GIVEN_UP),
    Fault.UNABLE: (NO_WAY, NO_WAY),
    Fault.UNAUTHORIZED: (NO_CREDENTIALS, NO_CREDENTIALS),
    Fault.FORBID: (FORBIDDEN, FORBIDDEN),
    Fault.LOSE: (GONE, GONE),
    Fault.LOOP: (CIRCLES, CIRCLES),
}
ELSEWHERE = {
    Fault.CHANGE,  # leads to another version
    Fault.CORRUPT,  # can only be told by a checksum
}
ANSWERS_THAT_COUNT = {  # for the question: they are believed at once
    Fault.OTHER_TOTAL,
    Fault.GZIP,
    Fault.UNABLE,
    Fault.UNAUTHORIZED,
    Fault.FORBID,
    Fault.LOSE,
}
NOT_ODD = {fault for fault, (outcome, _) in OUTCOMES.items() if outcome in {GIVEN_UP, NO_HTTP}}
"""What the fast path waits out, rather than leaving it to the general one."""
NOT_ODD.remove(Fault.OVERLONG)
SILENT = {Fault.STALL, Fault.DRIBBLE, Fault.MUTE}
BORNE_S = 0.5  # for so long a host that refuses for too much may begin to give
CHUNK_BYTES = 16 << 20
SIZE_BYTES = CHUNK_BYTES + (1 << 20) + 4  # a chunk, and a tail that ends off a page
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, SIZE_BYTES)


def ids(fault: object) -> str:
    return fault.name.lower() if isinstance(fault, Fault) else ""


@dataclass(frozen=True)
class Way:
    """One of the byte paths, to an origin that is reached in one of the ways."""

    origin: Origin
    root: Path
    front: TlsFront | None = None
    is_fast: bool = True
    settings: dict[str, object] = field(default_factory=dict)

    def url(self, name: str = "model") -> str:
        return (self.front or self.origin).url(name)

    def node(
        self, fault: Fault = Fault.NONE, **settings: object
    ) -> AbstractAsyncContextManager[Node]:
        """A node that leaves nothing behind, and waits no longer than *fault* has it wait."""
        patience_s = 0.5 if fault in SILENT else 15
        waits = {"stall_s": patience_s, "first_byte_s": patience_s}
        found = {**waits, **self.settings, **settings}
        return clean(self.root, self.front or self.origin, **found)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("contract") / "ca")


@pytest.fixture(params=["fast-plain", "fast-tls", "general-plain", "general-tls"])
def way(
    request: pytest.FixtureRequest,
    short_path: Path,
    origin: Origin,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Way]:
    """Each byte path, which gets every chance; the other is what it falls back to, or nothing."""
    path, transport = request.param.split("-")
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BASE_S", 0.01)
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BORNE_S", BORNE_S)
    if path == "general":
        monkeypatch.setattr(
            "ckptd_daemon.transfer.abilities.Abilities.may_be_fast", lambda *_: False
        )
    if transport == "plain":
        yield Way(origin, short_path, None, path == "fast")
        return
    with TlsFront(origin, authority) as front:
        yield Way(origin, short_path, front, path == "fast", {"ca_file": authority.file})


@pytest.fixture(scope="module")
def content(data: bytes) -> bytes:
    return data[:SIZE_BYTES]


@pytest.fixture(scope="module")
def long(data: bytes) -> bytes:
    """Whose first half has a whole chunk, and more than what aiohttp drops of a broken reply."""
    assert len(data) // 2 > CHUNK_BYTES + (2 << 20)
    return data


async def expect(node: Node, way: Way, content: bytes, outcome: Outcome) -> None:
    """Fetch, and get the right bytes or the right error with the right sentence."""
    if outcome is RIGHT:
        assert (await node.fetch(way.url())).read_bytes() == content
        assert node.entries("partials") == []
        return
    error, words = outcome
    with pytest.raises(error, match=words) as caught:
        await node.fetch(way.url())
    assert way.url() in str(caught.value)
    assert node.entries("blobs") == []


def test_every_fault_has_its_outcome() -> None:
    assert OUTCOMES.keys() | ELSEWHERE == set(Fault)


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_of_any_size_comes_whole_by_the_path_that_is_meant(
    size: int,
    way: Way,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: set[Stream] = set()
    fetch = Stream.fetch

    def counted(self: Stream, *arguments: Any) -> None:
        used.add(self)
        fetch(self, *arguments)

    monkeypatch.setattr(Stream, "fetch", counted)
    way.origin.put("model", content[:size])
    async with way.node() as node:
        await expect(node, way, content[:size], RIGHT)
    assert bool(used) == (way.is_fast and size > 0)


@pytest.mark.parametrize("fault", OUTCOMES, ids=ids)
async def test_a_fault_of_some_bodies_costs_time_and_no_byte(
    fault: Fault, way: Way, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    may_pass = OUTCOMES[fault][0] in {RIGHT, GIVEN_UP, NO_HTTP}
    times = 2 if may_pass else 1  # what is no matter of patience is asked again once
    file = way.origin.put("model", content)
    file.faults = [fault] * times
    async with way.node(fault, retries=5) as node:  # a machine that is busy costs some, too
        await expect(node, way, content, RIGHT)
    assert len(file.faults) < times  # one reply may be all of it
    if fault in NOT_ODD:
        assert "an odd reply" not in caplog.text


@pytest.mark.parametrize(("fault", "outcome"), [(f, o) for f, (o, _) in OUTCOMES.items()], ids=ids)
async def test_a_fault_of_every_body_has_its_outcome(
    fault: Fault, outcome: Outcome, way: Way, content: bytes
) -> None:
    way.origin.put("model", content).faults = [fault] * 1000
    if fault is Fault.OTHER_TOTAL and not way.is_fast:
        outcome = RIGHT  # it asks for no range at first, so that no total is said
    async with way.node(fault) as node:
        await expect(node, way, content, outcome)


@pytest.mark.parametrize("ignores_match", [False, True], ids=["honours_if_match", "cdn"])
async def test_two_versions_are_never_mixed(
    ignores_match: bool, way: Way, long: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    new = long[::-1]
    file = way.origin.put("model", long, ignores_match=ignores_match)
    file.next_version = File(new, '"v2"', ignores_match=ignores_match)
    file.faults = [Fault.TRUNCATE, Fault.CHANGE]
    async with way.node() as node:
        await expect(node, way, new, RIGHT)
    assert "an odd reply" not in caplog.text
    asked = zip(way.origin.requests, way.origin.headers, strict=True)
    matches = {headers.get("If-Match") for (_, range_), headers in asked if range_ != FIRST_BYTE}
    assert matches == {'"v1"', '"v2"'}, "who asks for bytes says of which version"


async def test_where_no_tail_is_to_be_had_after_all_the_whole_comes_once_more(
    way: Way, long: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = way.origin.put("model", long)
    first = [Fault.NONE] * way.is_fast + [Fault.TRUNCATE]
    file.faults = [*first, *[Fault.NO_TAIL] * 1000]
    async with way.node(streams=1, streams_max=1) as node:
        await expect(node, way, long, RIGHT)
    assert "is thrown away" not in caplog.text, "no other version"
    *_, tail, whole = way.origin.bodies("model")
    assert whole is None
    assert tail is not None
    assert not tail.startswith("bytes=0-"), "something has landed"


async def test_a_version_that_is_shorter_now_is_told_by_the_416_that_states_its_length(
    way: Way, long: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    new = long[:1000]
    file = way.origin.put("model", long, ignores_match=True)
    file.next_version = File(new, '"v2"', ignores_match=True)
    file.faults = [Fault.NONE] * way.is_fast + [Fault.TRUNCATE, Fault.CHANGE]
    async with way.node(streams=1, streams_max=1) as node:
        await expect(node, way, new, RIGHT)
    assert f"the origin now has 1000 bytes instead of {len(long)}" in caplog.text
    assert "an odd reply" not in caplog.text


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
async def test_damage_on_the_way_is_told_by_what_is_stated(
    times: int, way: Way, content: bytes
) -> None:
    way.origin.put("model", content).faults = [Fault.CORRUPT] * times
    sha256 = hashlib.sha256(content).hexdigest()
    async with way.node() as node:
        if times == 1:
            assert (await node.fetch(way.url(), sha256)).read_bytes() == content
        else:
            with pytest.raises(errors.DataLoss, match=f"not the stated {sha256}"):
                await node.fetch(way.url(), sha256)
        assert node.entries("partials") == []


async def test_what_has_landed_when_it_is_given_up_is_not_asked_for_again(
    way: Way, long: bytes
) -> None:
    file = way.origin.put("model", long)
    async with way.node(streams=1, streams_max=1, failure_s=0) as node:
        file.faults = [Fault.NONE] * way.is_fast + [Fault.TRUNCATE] * 1000
        with pytest.raises(errors.Unavailable, match="what was fetched is kept"):
            await node.fetch(way.url())
        file.faults, asked = [], len(way.origin.bodies("model"))
        await expect(node, way, long, RIGHT)
    again = way.origin.bodies("model")[asked:]
    assert again
    assert all(each is not None and not each.startswith("bytes=0-") for each in again)


async def test_who_leaves_in_the_middle_leaves_nothing_running(way: Way, content: bytes) -> None:
    way.origin.put("model", content)
    way.origin.hold(after_bytes=CHUNK_BYTES + 4096)
    async with way.node(stall_s=600) as node:
        with node.calling(way.url()):
            assert await to_thread.run_sync(way.origin.held.wait, 20)
        with anyio.fail_after(20):
            await node.fetcher.wait_idle()
    way.origin.release()


@pytest.mark.parametrize("fault", [*(OUTCOMES.keys() - ANSWERS_THAT_COUNT)], ids=ids)
async def test_a_fault_of_the_first_answers_costs_time_and_no_byte(
    fault: Fault, short_path: Path, origin: Origin, content: bytes
) -> None:
    file = origin.put("model", content)
    file.question_faults = [fault, fault]
    way = Way(origin, short_path)
    async with way.node(fault) as node:
        await expect(node, way, content, RIGHT)
    assert len(file.question_faults) < 2


@pytest.mark.parametrize(("fault", "outcome"), [(f, o) for f, (_, o) in OUTCOMES.items()], ids=ids)
async def test_a_fault_of_every_answer_has_its_outcome(
    fault: Fault,
    outcome: Outcome,
    short_path: Path,
    origin: Origin,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BORNE_S", BORNE_S)
    origin.put("model", content).lasting = fault
    way = Way(origin, short_path)
    async with way.node(fault) as node:
        await expect(node, way, content, outcome)
