"""Fixtures of the fetch tests."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fakes.origin import Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="session")
def data() -> bytes:
    """Two and a half chunks of bytes that differ everywhere, and end off a page."""
    return random.Random(1).randbytes(40 << 20) + b"tail"


@pytest.fixture(scope="session")
def other_data() -> bytes:
    """As long as `data`, and different."""
    return random.Random(2).randbytes((40 << 20) + 4)
