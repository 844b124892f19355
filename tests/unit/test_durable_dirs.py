"""One sync of a directory serves many, and nobody whose change came after it began."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ckptd_daemon.store import durable
from fakes.waiting import eventually


def test_a_sync_covers_all_who_ask_before_it_begins_and_no_one_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Semaphore(0), threading.Semaphore(0)
    shared = durable.SharedDir(tmp_path)

    def sync_dir(path: Path) -> None:
        assert path == tmp_path
        begun.release()
        assert may_end.acquire(timeout=10)

    monkeypatch.setattr(durable, "sync_dir", sync_dir)
    first = threading.Thread(target=shared.sync)
    first.start()
    assert begun.acquire(timeout=10)
    others = [threading.Thread(target=shared.sync) for _ in range(5)]
    for other in others:
        other.start()
    eventually(lambda: shared.waiting == len(others))
    may_end.release()
    first.join(10)
    assert begun.acquire(timeout=10)  # for those who asked while it ran
    assert all(other.is_alive() for other in others)
    may_end.release()
    for other in others:
        other.join(10)
    assert not begun.acquire(blocking=False)  # one for all of them


def test_a_sync_that_fails_is_nobody_elses(tmp_path: Path) -> None:
    shared = durable.SharedDir(tmp_path / "there")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            shared.sync()
    (tmp_path / "there").mkdir()
    shared.sync()
