"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fakes.daemon import Daemon, short_directory

pytest_plugins = ["fakes.require_real"]

# a shell has what it starts in the background ignore Ctrl-C, and all of its children
signal.signal(signal.SIGINT, signal.default_int_handler)

# no test may reach, or start, a daemon of the machine
os.environ["CKPTD_AUTOSTART"] = "0"
for _name in ("CKPTD_SOCKET", "CKPTD_STATE_DIR", "XDG_RUNTIME_DIR"):
    os.environ.pop(_name, None)
os.environ["CKPTD_FREE_FLOOR_PERCENT"] = "0"  # on whatever disk there is

settings.register_profile("as long as it takes", settings.default, deadline=None)
settings.load_profile("as long as it takes")  # how fast a machine is breaks no property


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name; what killed daemons staged goes too."""
    with short_directory() as directory:
        yield directory


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """A daemon that runs."""
    with Daemon(short_path) as running:
        yield running
