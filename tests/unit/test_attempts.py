from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.arena.uses import Holder
from ckptd_daemon.save.attempts import FOLLOWS, Attempt, Image, JobKey, State, WrongState
from ckptd_daemon.save.places import Place
from ckptd_daemon.sessions import Process
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

JOB = JobKey("job", Place(Path("/root"), "e", "r"), "i", 2, 0)
IMAGES = (Image("__0_0.distcp", 10), Image(".metadata", 4097))


def attempt() -> Attempt:
    return Attempt("1-a", JOB, 1, 7, "plan", replaces=False)


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_only_what_the_table_allows_may_follow(before: State, after: State) -> None:
    at = Attempt("1-a", JOB, 1, 7, "plan", replaces=False, state=before)
    if after in FOLLOWS[before]:
        assert at.to(after).state is after
    else:
        with pytest.raises(WrongState):
            at.to(after)


def test_every_state_but_the_last_two_can_be_aborted() -> None:
    final = {State.COMMITTED, State.ABORTED}
    assert {state for state in State if state.is_final} == final
    assert all(State.ABORTED in FOLLOWS[state] for state in set(State) - final)


def test_the_last_seal_stages() -> None:
    one = attempt().with_seal(1, IMAGES)
    assert (one.state, one.unsealed_ranks()) == (State.OPEN, [0])
    both = one.with_seal(0, IMAGES, plan=IMAGES, metrics={"loss": 1.0})
    assert both.state is State.STAGED
    assert both.total_bytes == 2 * (10 + 4097)
    with pytest.raises(WrongState):
        both.with_seal(0, IMAGES)
    with pytest.raises(WrongState):
        one.with_seal(1, IMAGES)


def test_a_failure_is_kept() -> None:
    failure = errors.Aborted("x")
    assert attempt().aborted(failure).failure is failure


def test_a_header_comes_back_as_it_was_sealed() -> None:
    laid, size = headers.layout(IMAGES)
    sealed = attempt().with_seal(0, IMAGES, plan=IMAGES, metrics={"loss": 0.5})
    data = headers.encode(headers.sealed_by(0, sealed, laid))
    assert laid[0].offset == headers.PAGE_BYTES
    assert all(item.offset % headers.PAGE_BYTES == 0 for item in laid)
    assert size == laid[1].offset + 8192
    found = headers.decode(data + b"of an earlier one")
    assert isinstance(found, headers.Header)
    assert (found.rank, found.laid, found.attempt.job) == (0, laid, JOB)
    assert (found.attempt.plan, found.attempt.metrics) == (IMAGES, {"loss": 0.5})
    assert headers.needed_bytes(data[:4096]) == len(data)


def test_a_torn_or_foreign_header_is_no_header() -> None:
    laid, _ = headers.layout(IMAGES)
    data = headers.encode(headers.sealed_by(0, attempt(), laid))
    assert headers.decode(data[:-1]) is None
    assert headers.decode(data[:-1] + b"x") is None
    assert headers.decode(bytes(4096)) is None
    assert headers.decode(b"") is None
    newer = data[:8] + (headers.FORMAT + 1).to_bytes(4, "little") + data[12:]
    with pytest.raises(headers.NewerFormat):
        headers.decode(newer)


def test_a_plan_too_long_for_a_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    laid, _ = headers.layout(IMAGES)
    plan = tuple(Image(f"{number:0200}", 1) for number in range(100))
    sealed = attempt().with_seal(0, IMAGES, plan=plan)
    assert headers.encode(headers.sealed_by(0, sealed, laid))
    monkeypatch.setattr(headers, "_RECORD_BYTES_MAX", 20_000)
    with pytest.raises(errors.InvalidArgument, match="use fewer images"):
        headers.encode(headers.sealed_by(0, sealed, laid))


def test_who_took_a_slot_comes_back_and_fits_a_page() -> None:
    place = Place(Path("/" + "ä/" * 2000), "e" * 128, "r" * 128)
    taken = Holder.of(65_535, place, 1000, process=Process(4711, 1 << 40, 1000)).taken("a" * 128)
    head = headers.encode_taken(taken)
    assert len(head) <= headers.PAGE_BYTES
    assert headers.decode(head + b"of an earlier one") == taken


def repacked(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a head whose record is another, and whose checksum is right."""
    record = json.loads(data[24:])
    change(record)
    text = json.dumps(record).encode()
    return data[:12] + struct.pack("<IQ", crc32c(text), len(text)) + text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.clear(),
        lambda record: record.pop("metrics"),
        lambda record: record.update(images=[["../../etc/cron.d/x", 10, 4096]]),
        lambda record: record.update(plan=[["a/b", 10]]),
        lambda record: record.update(images=[["a", 10, 0]]),
        lambda record: record.update(images=[["a", -1, 4096]]),
        lambda record: record.update(attempt="../1-a"),
        lambda record: record.update(root="relative"),
        lambda record: record.update(root="/tmp/../etc"),
        lambda record: record.update(run=".."),
        lambda record: record.update(rank=2),
        lambda record: record.update(uid="root"),
        lambda record: record.update(metrics=["loss"]),
        lambda record: record.update(members=[["not a name"], [0, 0], 0]),
    ],
)
def test_a_record_that_is_whole_and_makes_no_sense_is_not_believed(
    change: Callable[[dict[str, Any]], object],
) -> None:
    laid, _ = headers.layout(IMAGES)
    sealed = attempt().with_seal(0, IMAGES, plan=IMAGES, metrics={"loss": 0.5})
    data = headers.encode(headers.sealed_by(0, sealed, laid))
    assert headers.decode(repacked(data, lambda record: record))
    with pytest.raises(headers.Unreadable):
        headers.decode(repacked(data, change))
