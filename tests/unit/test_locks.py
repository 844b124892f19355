"""Who finds a daemon in the way is told how to stop it, whichever version wrote its lock."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from ckptd_daemon.config import default_socket
from ckptd_daemon.door import locks
from ckptd_proto import errors


@pytest.mark.parametrize(
    ("wrote", "says"),
    [
        ("4711\n/tmp/my own.sock\n", "(pid 4711) .* `ckptd stop --socket '/tmp/my own.sock'`"),
        (f"4711\n{default_socket()}\n", "(pid 4711) .* `ckptd stop`"),
        ("4711\n", "(pid 4711) .* `ckptd stop`"),  # before it told its socket
        ("", "(another process) .* `ckptd stop`"),  # between two lines of code
    ],
)
def test_the_holder_of_a_lock_is_named_with_what_stops_it(
    wrote: str, says: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    lock.write_text(wrote)
    pattern = says.replace("(", r"\(").replace(")", r"\)")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(errors.FailedPrecondition, match=pattern),
            locks.held(lock, "the state", tmp_path / "d.sock"),
        ):
            pass
    assert lock.read_text() == wrote


def test_a_lock_is_free_when_its_holder_is_done(tmp_path: Path) -> None:
    for _ in range(2):
        with locks.held(tmp_path / "lock", "the state", tmp_path / "d.sock"):
            pass
