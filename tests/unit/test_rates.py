"""Rates as people write them."""

from __future__ import annotations

import pytest

from ckptd.cli.config import rate
from ckptd.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("50000000", 50_000_000),
        ("50MB", 50_000_000),
        ("50 mb/s", 50_000_000),
        ("1.5GB", 1_500_000_000),
        ("10MiB", 10 << 20),
        ("64k", 64_000),
        ("none", None),
    ],
)
def test_rates_are_read(text: str, bytes_per_s: int | None) -> None:
    assert rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "-5", "5 TB/h", "MB", "5MBits"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no rate; write 50000000, 50MB"):
        rate(text)
