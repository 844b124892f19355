"""Which checkpoints stay: the table of rules, and what no rule can do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.save.attempts import Checkpoint, Flaw
from ckptd_daemon.save.keeping.retention import Retention, reasons
from ckptd_daemon.save.places import Place
from ckptd_proto import errors

PLACE = Place(Path("/root"), "e", "r")
NOW = 1_000_000.0


def checkpoint(step: int, loss: float | None = None, age_s: float = 1e6) -> Checkpoint:
    metrics = {} if loss is None else {"loss": loss}
    return Checkpoint(PLACE, step, f"a{step}", "i", "p", 1, metrics, NOW - age_s)


RUN = [
    checkpoint(100, 0.5),
    checkpoint(200, 0.3),
    checkpoint(300, math.nan),
    checkpoint(400),
    checkpoint(500, 0.3, age_s=60),
    checkpoint(600, 0.9, age_s=10),
]

rules = st.builds(
    Retention,
    latest=st.integers(0, 4),
    best=st.integers(0, 4),
    monitor=st.just("loss"),
    mode=st.sampled_from(["min", "max"]),
    every=st.integers(0, 5),
    ttl_s=st.none() | st.floats(1, 100),
)
runs = st.dictionaries(
    st.integers(0, 50),
    st.tuples(st.none() | st.floats(allow_nan=True), st.floats(0, 200)),
).map(lambda found: [checkpoint(step, loss, age) for step, (loss, age) in found.items()])


@given(runs, rules, st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_what_cannot_be_read_stays_and_changes_nothing_for_the_others(
    found: list[Checkpoint], given_rules: Retention, unread: set[int], bad: set[int]
) -> None:
    flaw = Flaw("is damaged")
    seen = [replace(one, flaw=flaw) if one.step in unread else one for one in found]
    kept = reasons(seen, given_rules, bad=unread | bad, now=NOW)
    assert unread & {one.step for one in found} <= kept.keys()
    known = [one for one in found if one.step not in unread]
    others = reasons(known, given_rules, bad=bad, now=NOW)
    assert {step: why for step, why in kept.items() if step not in unread} == others


def stays(given_rules: Retention, pinned: frozenset[int] = frozenset()) -> list[int]:
    return sorted(reasons(RUN, given_rules, pinned=pinned, now=NOW))


@pytest.mark.parametrize(
    ("given_rules", "steps"),
    [
        (Retention(), [100, 200, 300, 400, 500, 600]),
        (Retention(latest=1), [600]),
        (Retention(latest=2), [500, 600]),
        (Retention(latest=99), [100, 200, 300, 400, 500, 600]),
        (Retention(best=1, monitor="loss"), [200, 600]),
        (Retention(best=2, monitor="loss"), [200, 500, 600]),
        (Retention(best=1, monitor="loss", mode="max"), [600]),
        (Retention(best=2, monitor="loss", mode="max"), [100, 600]),
        (Retention(best=9, monitor="loss"), [100, 200, 500, 600]),
        (Retention(best=3, monitor="accuracy"), [600]),
        (Retention(every=200), [200, 400, 600]),
        (Retention(ttl_s=100), [500, 600]),
        (Retention(ttl_s=1), [600]),
        (Retention(latest=1, best=1, monitor="loss", every=300), [200, 300, 600]),
        (Retention(latest=1, ttl_s=100), [500, 600]),
    ],
)
def test_what_any_rule_keeps_stays(given_rules: Retention, steps: list[int]) -> None:
    assert stays(given_rules) == steps


def test_the_latest_are_those_saved_last_whatever_their_numbers() -> None:
    rolled_back = [*RUN, checkpoint(310), checkpoint(320)]
    for latest, steps in ((1, [320]), (2, [310, 320]), (3, [310, 320, 600])):
        assert sorted(reasons(rolled_back, Retention(latest=latest), now=NOW)) == steps


def test_what_is_known_to_be_bad_takes_nobodys_place() -> None:
    assert sorted(reasons(RUN, Retention(latest=1), bad={600}, now=NOW)) == [500, 600]
    assert sorted(reasons([*RUN, checkpoint(550)], Retention(latest=1), bad={600}, now=NOW)) == [
        550
    ]
    by_loss = Retention(best=1, monitor="loss")
    assert sorted(reasons(RUN, by_loss, bad={200}, now=NOW)) == [200, 500, 600]
    assert reasons(RUN, Retention(latest=1), bad={600}, now=NOW)[600] == "newest, but corrupt"


@given(runs, rules, st.frozensets(st.integers(0, 50)))
def test_the_good_ones_stay_as_if_the_bad_ones_were_not_there(
    run: list[Checkpoint], given_rules: Retention, bad: frozenset[int]
) -> None:
    good = [one for one in run if one.step not in bad]
    kept = reasons(run, given_rules, bad=bad, now=NOW).keys()
    assert kept - bad == reasons(good, given_rules, now=NOW).keys()
    assert kept & bad == reasons(run, given_rules, now=NOW).keys() & bad


def test_what_is_pinned_stays() -> None:
    assert stays(Retention(latest=1), frozenset({100, 12345})) == [100, 600]


def test_what_was_committed_in_the_future_is_young() -> None:
    skewed = [checkpoint(1, age_s=-3600), checkpoint(2)]
    assert sorted(reasons(skewed, Retention(ttl_s=10), now=NOW)) == [1, 2]


@given(runs, rules, st.frozensets(st.integers(0, 50), max_size=3))
def test_no_rule_touches_the_newest_or_what_is_pinned(
    run: list[Checkpoint], given_rules: Retention, pinned: frozenset[int]
) -> None:
    kept = reasons(run, given_rules, pinned=pinned, now=NOW)
    steps = {one.step for one in run}
    assert kept.keys() <= steps
    assert not run or run[-1].step in kept
    assert pinned & steps <= kept.keys()


@given(runs, rules, rules)
def test_one_rule_more_never_lets_more_go(
    run: list[Checkpoint], one: Retention, other: Retention
) -> None:
    if one.keeps_all or other.keeps_all:
        return
    both = replace(one, latest=max(one.latest, other.latest), every=one.every or other.every)
    assert reasons(run, one, now=NOW).keys() <= reasons(run, both, now=NOW).keys()


@given(rules)
def test_rules_come_back_from_their_file(given_rules: Retention) -> None:
    assert Retention.decode(given_rules.encode()) == given_rules


@given(st.binary() | st.sampled_from([b"{}", b"[]", b"null", b'{"format": 1, "latest": "3"}']))
def test_a_damaged_file_has_no_rules(data: bytes) -> None:
    with pytest.raises((ValueError, errors.CkptdError), match=r"\S"):
        Retention.decode(data)


def test_rules_of_a_newer_format_are_refused() -> None:
    with pytest.raises(errors.Unimplemented, match="update"):
        Retention.decode(b'{"format": 2}')


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Retention(latest=-1),
        lambda: Retention(best=1),
        lambda: Retention(ttl_s=0.0),
        lambda: Retention(ttl_s=math.nan),
        lambda: Retention.decode(Retention(latest=1).encode().replace(b'"min"', b'"least"')),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(wrong: Callable[[], Retention]) -> None:
    with pytest.raises(errors.InvalidArgument, match="pass"):
        wrong()
