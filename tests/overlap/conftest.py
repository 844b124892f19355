"""Fixtures of the tests in which a thread plays the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import ckptd
from fakes.daemon import Daemon, short_directory
from fakes.streams import ThreadStream, playing
from fakes.training import opened


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests here; each has a root of its own."""
    with short_directory() as directory, Daemon(directory) as one:
        yield one


@pytest.fixture
def stream() -> Iterator[ThreadStream]:
    with playing() as one:
        yield one


@pytest.fixture
def ckpt(daemon: Daemon, tmp_path: Path, stream: ThreadStream) -> Iterator[ckptd.Checkpointer]:
    with opened(daemon, tmp_path) as one:
        yield one
        stream.release()


@pytest.fixture
def beside() -> Iterator[Callable[[Callable[[], object]], Future[object]]]:
    """Does something on a thread, as it may block."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit
