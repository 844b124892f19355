"""A job that saves in one process: each call is another life of the run e/r."""

from __future__ import annotations

from pathlib import Path

import ckptd
from fakes.daemon import Daemon


def job(daemon: Daemon, root: Path, retention: ckptd.Retention | None = None) -> ckptd.Checkpointer:
    """Return its `Checkpointer`, which ends with the block."""
    return ckptd.Checkpointer(
        root, experiment="e", run="r", socket=daemon.socket, retention=retention
    )
