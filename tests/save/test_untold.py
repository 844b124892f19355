"""What went wrong with a save is told, however carelessly a job ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptd
from ckptd.saving.membership import Membership
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.tracing import tampered

CARELESS = Path(__file__).parent / "programs" / "careless.py"


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """One that does not wait for a mount that was lost."""
    with Daemon(short_path, persist_retry_s=0) as daemon:
        yield daemon


def ended(daemon: Daemon, how: str, root: Path) -> str:
    """Run a job to its end, which it believes to be a good one; return what it told."""
    done = subprocess.run(
        [sys.executable, str(CARELESS), how, str(root)],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    return done.stderr


@pytest.mark.parametrize("how", ["ends", "forgets", "torch"])
def test_a_job_that_never_asks_is_told_what_became_of_its_last_save(
    daemon: Daemon, tmp_path: Path, how: str
) -> None:
    root = tmp_path / "root"
    told = ended(daemon, how, root)
    assert f"step 2 of {root / 'e' / 'r'} was not saved" in told
    assert "mount it again" in told, "why"
    assert "call result()" in told, "what to do"
    assert told.count("was not saved") == 1


def test_a_job_that_has_asked_is_not_told_again(daemon: Daemon, tmp_path: Path) -> None:
    assert ended(daemon, "asks", tmp_path / "root") == ""


def test_a_job_that_cannot_leave_hears_of_a_save_that_failed(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ckpt = ckptd.Checkpointer(root, experiment="e", run="r", socket=daemon.socket)
    ckpt.save({"x": 1}, step=1).result(60)
    root.rename(tmp_path / "moved")
    root.mkdir()
    assert ckpt.save({"x": 2}, step=2).wait(60)

    def leave(member: Membership) -> None:
        raise errors.PermissionDenied("the daemon is another user's by now")

    monkeypatch.setattr(Membership, "leave", leave)
    with pytest.raises(errors.CkptdError, match="mount it again"):
        ckpt.close()


Failed = tuple[ckptd.Checkpointer, ckptd.Save]


@pytest.fixture
def failed(daemon: Daemon, tmp_path: Path) -> Failed:
    """A job, and its last save, which has failed behind the training; the daemon is well."""
    ckpt = ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket)
    ckpt.save({"x": 1}, step=1).result(60)
    with tampered(daemon.pid, "mkdir:error=EIO"):
        save = ckpt.save({"x": 2}, step=2)
        assert save.wait(60)
    assert save.failure is not None
    return ckpt, save


def test_closing_tells_of_a_save_that_failed_and_closing_again_does_not(failed: Failed) -> None:
    ckpt, save = failed
    with pytest.raises(errors.Unavailable, match="the disk failed") as told:
        ckpt.close()
    assert told.value is save.failure
    ckpt.close()
    with pytest.raises(errors.FailedPrecondition, match="is closed"):
        ckpt.save({"x": 3}, step=3)


def test_a_block_that_ends_tells_of_a_save_that_failed(failed: Failed) -> None:
    with pytest.raises(errors.Unavailable, match="the disk failed"), failed[0]:
        pass


def test_closing_says_nothing_of_what_the_job_has_heard(failed: Failed) -> None:
    ckpt, save = failed
    with pytest.raises(errors.Unavailable, match="the disk failed"):
        save.result()
    ckpt.close()
