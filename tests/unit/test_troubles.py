"""Which failures of a place may pass, and for how long they are waited out."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import pytest

from ckptd_daemon.save.places import check_same_root
from ckptd_daemon.save.troubles import FULL_S, Trouble, may_pass
from ckptd_daemon.store import durable
from ckptd_proto import errors

FAILED = errors.Unavailable("the disk failed")
FULL = errors.ResourceExhausted("no space", need_bytes=2, free_bytes=1)


def said(code: int, path: Path) -> Exception:
    """What the disk is taken to say by that error of a call."""
    try:
        with durable.explained(path):
            raise OSError(code, "no")
    except (OSError, errors.CkptdError) as error:
        return error


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT]
)
def test_what_may_pass_is_waited_out(code: int, tmp_path: Path) -> None:
    assert may_pass(said(code, tmp_path))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT])
def test_what_cannot_pass_is_not(code: int, tmp_path: Path) -> None:
    assert not may_pass(said(code, tmp_path))
    assert not may_pass(errors.AlreadyExists("there"))


def test_a_root_that_is_another_may_be_mounted_again(tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        check_same_root(tmp_path, (1, 1))
    assert may_pass(caught.value)


def test_an_error_that_is_its_own_cause_is_judged_as_well() -> None:
    failure = errors.Aborted("x")
    failure.__cause__ = failure
    assert not may_pass(failure)


def test_a_full_disk_keeps_nobody_waiting_for_long() -> None:
    assert Trouble(FAILED, 0.0).limit_s(300.0, is_followed=True) == 300.0
    assert Trouble(FULL, 0.0).limit_s(300.0, is_followed=True) == FULL_S
    assert Trouble(FULL, 0.0).limit_s(300.0, is_followed=False) == 300.0
    assert Trouble(FULL, 0.0).limit_s(0.0, is_followed=True) == 0.0


def test_each_pause_is_longer_than_the_one_before_and_none_very_long() -> None:
    trouble, pauses = Trouble(FAILED, 0.0), list[float]()
    for _ in range(100):
        pauses.append(trouble.pause_s(is_hurried=False))
        assert trouble.pause_s(is_hurried=True) <= 1.0
        trouble = trouble.again(FAILED)
    assert all(one <= other for one, other in pairwise(pauses))
    assert (pauses[0] < 1.0, pauses[-1]) == (True, 5.0)


def test_the_end_tells_what_failed_how_often_and_the_numbers() -> None:
    ended = Trouble(FULL, 10.0).again(FULL).ended(25.0, "as it had to be")
    assert str(ended) == "no space; tried 2 times in 15 s, as it had to be"
    assert isinstance(ended, errors.ResourceExhausted)
    assert (ended.need_bytes, ended.free_bytes) == (2, 1)
