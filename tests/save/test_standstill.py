"""A daemon that stands still holds no trainer up for longer than it wants to wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.saving import checkpointer, stager
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.training import opened

STATE = {"w": torch.ones(1000)}


@pytest.fixture
def impatient(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ckptd.Checkpointer]:
    """Waits for some seconds, in which a disk syncs, and no longer for a daemon."""
    monkeypatch.setattr(checkpointer, "LEAD", 1.0)
    monkeypatch.setattr(stager, "GRACE_S", 0.0)
    with opened(daemon, tmp_path, timeout=4) as ckpt:
        yield ckpt


@contextmanager
def standing_still(daemon: Daemon) -> Iterator[None]:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_the_first_save_ends_in_words_and_the_next_one_works(
    daemon: Daemon, impatient: ckptd.Checkpointer
) -> None:
    with standing_still(daemon), pytest.raises(errors.DeadlineExceeded) as told:
        impatient.save(STATE, step=1)
    text = f"the daemon at {daemon.socket} (pid {daemon.pid}) has not answered for "
    assert str(told.value).startswith(text)
    assert "look at its log" in str(told.value)
    assert impatient.save(STATE, step=2).result(30).step == 2


def test_a_later_save_ends_and_the_next_one_works(
    daemon: Daemon, impatient: ckptd.Checkpointer
) -> None:
    impatient.save(STATE, step=1).result(30)
    with standing_still(daemon), pytest.raises(errors.DeadlineExceeded, match="has not answered"):
        impatient.save(STATE, step=2)
    assert impatient.save(STATE, step=3).result(30).step == 3


@pytest.mark.parametrize("call", ["_reserve", "_seal"])
def test_a_save_ends_wherever_it_is_and_the_next_one_works(
    daemon: Daemon, impatient: ckptd.Checkpointer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    impatient.save(STATE, step=1).result(30)
    true = getattr(stager.Stager, call)

    def stopped(*arguments: object) -> object:
        os.kill(daemon.pid, signal.SIGSTOP)
        return true(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stager.Stager, call, stopped)
        try:
            with pytest.raises(errors.DeadlineExceeded, match="has not answered"):
                impatient.save(STATE, step=2)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
    assert impatient.save(STATE, step=3).result(30).step == 3


def test_what_could_not_be_prepared_is_told_by_the_next_save(
    daemon: Daemon, impatient: ckptd.Checkpointer
) -> None:
    with standing_still(daemon):
        impatient.prepare(STATE)
        prepared = impatient._run._stager._preparing
        assert prepared is not None
        assert isinstance(prepared.exception(30), errors.DeadlineExceeded)
    with pytest.raises(errors.DeadlineExceeded, match="has not answered"):
        impatient.save(STATE, step=1)
    assert impatient.save(STATE, step=2).result(30).step == 2
