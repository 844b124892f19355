"""Whatever the origin does, the caller gets the right bytes or a typed error; nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.node import Node, clean
from fakes.origin import Fault, Origin

Outcome = tuple[type[errors.CkptdError], str] | None
RIGHT: Outcome = None
GIVEN_UP: Outcome = (errors.Unavailable, "given up after 3 tries .* try again later")
NO_HTTP: Outcome = (errors.Unavailable, "given up after 3 tries .* the answer is not valid HTTP")
CHANGES: Outcome = (errors.Aborted, "changed 2 times .* ask again when it is settled")
NO_CREDENTIALS: Outcome = (errors.Unauthenticated, "401: it wants credentials")
FORBIDDEN: Outcome = (errors.PermissionDenied, "403: these credentials may not read it")
GONE: Outcome = (errors.NotFound, "404: there is no such object")
ENCODED: Outcome = (errors.FailedPrecondition, "gzip-encoded although the plain bytes were asked")
CIRCLES: Outcome = (errors.FailedPrecondition, "more than 10 redirects")
UNLABELLED: Outcome = (errors.FailedPrecondition, "206 with a Content-Range that was not asked for")
ENDLESS: Outcome = (errors.FailedPrecondition, "neither the length nor the end of its reply")
NO_WAY: Outcome = (errors.FailedPrecondition, "416, which is no way to send a file")

OUTCOMES: dict[Fault, tuple[Outcome, Outcome]] = {
    # the fault: when every body has it, when every answer has it
    Fault.NONE: (RIGHT, RIGHT),
    Fault.NO_RANGES: (RIGHT, RIGHT),
    Fault.NO_LENGTH: (RIGHT, RIGHT),
    Fault.NO_LABEL: (RIGHT, UNLABELLED),
    Fault.OTHER_RANGE: (RIGHT, RIGHT),
    Fault.OTHER_TOTAL: (CHANGES, CHANGES),
    Fault.LABELLED_200: (RIGHT, RIGHT),
    Fault.MULTIPART: (RIGHT, UNLABELLED),
    Fault.LONGER: (RIGHT, RIGHT),
    Fault.SHORTER: (RIGHT, RIGHT),
    Fault.SURPLUS: (RIGHT, RIGHT),
    Fault.OVERLONG: (GIVEN_UP, GIVEN_UP),
    Fault.UNSATISFIABLE: (NO_WAY, NO_WAY),
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
    Fault.NO_LABEL,
    Fault.OTHER_TOTAL,
    Fault.MULTIPART,
    Fault.GZIP,
    Fault.UNAUTHORIZED,
    Fault.FORBID,
    Fault.LOSE,
}
SIZE_BYTES = (33 << 20) + 4  # two chunks and a tail that ends off a page


def ids(fault: object) -> str:
    return fault.name.lower() if isinstance(fault, Fault) else ""


@pytest.fixture(scope="module")
def content(data: bytes) -> bytes:
    return data[:SIZE_BYTES]


async def expect(node: Node, origin: Origin, content: bytes, outcome: Outcome) -> None:
    """Fetch, and get the right bytes or the right error with the right sentence."""
    if outcome is RIGHT:
        assert (await node.fetch(origin.url("model"))).read_bytes() == content
        assert node.entries("partials") == []
        return
    error, words = outcome
    with pytest.raises(error, match=words) as caught:
        await node.fetch(origin.url("model"))
    assert origin.url("model") in str(caught.value)
    assert node.entries("blobs") == []


def test_every_fault_has_its_outcome() -> None:
    assert OUTCOMES.keys() | ELSEWHERE == set(Fault)


@pytest.mark.parametrize("fault", OUTCOMES, ids=ids)
async def test_a_fault_of_some_bodies_costs_time_and_no_byte(
    fault: Fault, short_path: Path, origin: Origin, content: bytes
) -> None:
    may_pass = OUTCOMES[fault][0] in {RIGHT, GIVEN_UP, NO_HTTP}
    times = 2 if may_pass else 1  # what is no matter of patience is asked again once
    file = origin.put("model", content)
    file.faults = [fault] * times
    async with clean(short_path, origin) as node:
        await expect(node, origin, content, RIGHT)
    assert file.faults == []


@pytest.mark.parametrize("fault", [*(OUTCOMES.keys() - ANSWERS_THAT_COUNT)], ids=ids)
async def test_a_fault_of_the_first_answers_costs_time_and_no_byte(
    fault: Fault, short_path: Path, origin: Origin, content: bytes
) -> None:
    file = origin.put("model", content)
    file.question_faults = [fault, fault]
    async with clean(short_path, origin) as node:
        await expect(node, origin, content, RIGHT)
    assert len(file.question_faults) < 2


@pytest.mark.parametrize(("fault", "outcome"), [(f, o) for f, (o, _) in OUTCOMES.items()], ids=ids)
async def test_a_fault_of_every_body_has_its_outcome(
    fault: Fault, outcome: Outcome, short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content).faults = [fault] * 1000
    async with clean(short_path, origin) as node:
        await expect(node, origin, content, outcome)


@pytest.mark.parametrize(("fault", "outcome"), [(f, o) for f, (_, o) in OUTCOMES.items()], ids=ids)
async def test_a_fault_of_every_answer_has_its_outcome(
    fault: Fault, outcome: Outcome, short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content).lasting = fault
    async with clean(short_path, origin) as node:
        await expect(node, origin, content, outcome)
