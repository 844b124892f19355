"""Hosts are left alone for as long as they ask, in whatever words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.brakes import PAUSE_MAX_S, Brakes, pause_s
from ckptd_daemon.sources.http import refusal, unwell
from ckptd_daemon.sources.source import TransientError


def asked(status: int, **headers: str) -> float | None:
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return pause_s(status, lambda name: named.get(name.lower()))


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"Retry_After": "7"}, 7),
        (503, {"Retry_After": " 7 "}, 7),
        (429, {"Retry_After": "soon"}, None),
        (429, {}, None),
        (206, {"Retry_After": "7"}, None),
        (429, {"RateLimit": '"default";r=0;t=30'}, 30),
        (206, {"RateLimit": '"default";r=0;t=30'}, 30),
        (206, {"RateLimit": '"default";r=5;t=30'}, None),
        (206, {"RateLimit": '"burst";r=5;t=3, "daily";r=0;t=60'}, 60),
        (200, {"RateLimit": "limit=100, remaining=0, reset=12"}, 12),
        (200, {"RateLimit_Remaining": "0", "RateLimit_Reset": "12"}, 12),
        (200, {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "12"}, 12),
        (200, {"X_RateLimit_Remaining": "9", "X_RateLimit_Reset": "12"}, None),
        (429, {"X_RateLimit_Remaining": "9", "X_RateLimit_Reset": "12"}, 12),
        (429, {"Retry_After": "3", "X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "12"}, 3),
    ],
)
def test_what_a_reply_asks_for(
    status: int, headers: dict[str, str], expected: float | None
) -> None:
    assert asked(status, **headers) == expected


def test_whatever_is_wrong_at_the_origins_end_may_pass_but_what_it_will_never_learn() -> None:
    passing = {s for s in range(400, 600) if isinstance(refusal(s, {}, "model"), TransientError)}
    assert passing == {408, 421, 425, 429} | set(range(500, 600)) - {501, 505}


@pytest.mark.parametrize("status", [429, 503, 509, 529])
def test_who_is_asked_too_much_is_asked_for_less(status: int) -> None:
    told: list[str] = []
    brakes = Brakes()
    brakes.on_throttled = told.append
    brakes.heed("http://one/", status, {}.get)
    assert told == ["http://one/"]
    assert unwell(status, {}.get).is_throttled
    assert not unwell(500, {}.get).is_throttled


def test_dates_are_understood_as_well_as_seconds() -> None:
    at = datetime.now(UTC) + timedelta(seconds=60)
    header = asked(429, Retry_After=format_datetime(at, usegmt=True))
    epoch = asked(200, X_RateLimit_Remaining="0", X_RateLimit_Reset=str(int(at.timestamp())))
    for found in (header, epoch):
        assert found is not None
        assert 50 < found <= 60


@given(st.integers(200, 599), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_header_breaks_it(status: int, after: str, limit: str, reset: str) -> None:
    found = asked(
        status, Retry_After=after, RateLimit=limit, RateLimit_Reset=reset, RateLimit_Remaining="0"
    )
    assert found is None or found >= 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry_After": "9" * 5000},
        {"Retry_After": "\u0663" * 3},  # digits, of another script
        {"Retry_After": "Fri, 31 Dec 9999 23:59:59 -2359"},
        {"Retry_After": "Sun, 06 Nov 1994 08:49:37 +99999999999999999"},
        {"RateLimit": f'"a";r={"0" * 5000};t=1'},
        {"RateLimit": f'"a";r=0;t={"9" * 5000}'},
        {"RateLimit_Remaining": "0" * 5000, "RateLimit_Reset": "1"},
        {"RateLimit_Remaining": "0", "RateLimit_Reset": "9" * 5000},
    ],
)
def test_numbers_and_dates_that_nobody_means_ask_for_nothing(headers: dict[str, str]) -> None:
    assert (asked(429, **headers) or 0) >= 0


def test_a_pause_is_for_all_of_a_host_and_for_no_other() -> None:
    now = 100.0
    brakes = Brakes(lambda: now)
    brakes.hold("https://user:secret@one/a?sig=x", 10)
    brakes.hold("https://one:443/b", 5)
    assert brakes.left_s("https://one/c") == 10
    assert brakes.left_s("http://one/c", "https://other/c") == 0
    assert brakes.left_s("https://other/c", "https://one/c") == 10
    now = 111.0
    assert brakes.left_s("https://one/c") == 0


def test_no_host_stops_us_for_ever() -> None:
    brakes = Brakes(lambda: 0.0)
    brakes.hold("http://one/", 1e12)
    assert brakes.left_s("http://one/") == PAUSE_MAX_S
