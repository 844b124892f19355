"""How far a reply's word on its version is believed."""

from __future__ import annotations

import pytest

from ckptd_daemon.sources.http import validator_of, version_of

OLD = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
NOW = "Sat, 01 Jan 2000 00:00:00 GMT"


def test_a_weak_etag_vouches_for_no_joint_and_a_later_date_is_another_version() -> None:
    one = validator_of({"ETag": 'W/"a"', "Last-Modified": OLD, "Date": NOW})
    other = validator_of({"ETag": 'W/"a"', "Last-Modified": LATER, "Date": NOW})
    assert not one.is_strong
    assert one.admits('W/"a"', OLD)
    assert not one.admits('W/"a"', LATER)
    assert version_of(one, 7) != version_of(other, 7)


def test_a_strong_etag_is_the_version_whatever_the_date() -> None:
    one = validator_of({"ETag": '"a"', "Last-Modified": OLD, "Date": NOW})
    other = validator_of({"ETag": '"a"', "Last-Modified": NOW, "Date": NOW})
    assert one.is_strong
    assert one.admits('"a"', LATER)
    assert version_of(one, 7) == version_of(other, 7)


@pytest.mark.parametrize(
    ("modified", "date", "is_strong"),
    [
        (OLD, NOW, True),
        (NOW, NOW, False),
        ("yesterday", NOW, False),
        ("Mon, 01 Jan 0001 00:00:00 +2359", NOW, False),  # before all time
        ("Sun, 06 Nov 1994 08:49:37 +99999999999999999", NOW, False),
        (OLD, "Sun, 06 Nov 2094 08:49:37 +99999999999999999", False),
    ],
)
def test_a_date_names_a_version_once_its_second_is_long_over(
    modified: str, date: str, is_strong: bool
) -> None:
    assert validator_of({"Last-Modified": modified, "Date": date}).is_strong is is_strong
