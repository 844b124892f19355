"""Runs commands as a user would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

CKPTD = (sys.executable, "-m", "ckptd.cli")


def ckptd(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `ckptd` with *arguments* to its end."""
    return subprocess.run(
        [*CKPTD, *arguments],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def started(*arguments: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ckptd` with *arguments* beside the block, and no longer than that."""
    with subprocess.Popen([*CKPTD, *arguments], env=dict(env)) as process:
        try:
            yield process
        finally:
            process.kill()


def python(code: str, *, env: Mapping[str, str]) -> str:
    """Run *code* to its end, which must be a good one, with nothing on stderr; return stdout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return str(done.stdout)
