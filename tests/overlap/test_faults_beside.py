"""What goes wrong while copies go on beside the training: devices, drivers, daemons, ranks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from ckptd_proto import errors
from fakes import ranks
from fakes.daemon import Daemon
from fakes.streams import ThreadStream
from fakes.training import opened, same, saved, training, values
from fakes.waiting import eventually, is_somebody_in

PROGRAM = Path(__file__).parent / "programs" / "overlapping.py"
DONE_S = 60.0

pytestmark = pytest.mark.timeout(300)


def test_a_device_that_fails_fails_the_save_for_all_and_no_other(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, daemon: Daemon, tmp_path: Path
) -> None:
    state = training()
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    stream.failure = RuntimeError("an illegal memory access was encountered")
    stream.release()
    with pytest.raises(errors.Aborted, match="copying from the device failed: an illegal memory"):
        save.result(DONE_S)
    mine = [each for each in daemon.client().status().attempts if each.root == str(tmp_path)]
    assert "open" not in [each.state for each in mine]  # whoever else saves in it has been told
    stream.failure = None
    assert ckpt.latest() is None
    ckpt.save(state, step=1).result(DONE_S)


def test_a_copy_that_failed_is_told_by_the_next_save_if_nobody_has_asked(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    state = training()
    stream.hold(after=1)
    ckpt.save(state, step=1)
    stream.failure = RuntimeError("the device is lost")
    stream.release()
    with pytest.raises(errors.Aborted, match="the device is lost"):
        ckpt.save(state, step=2)
    stream.failure = None
    ckpt.save(state, step=2).result(DONE_S)


def test_a_device_that_fails_at_once_fails_save_itself(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    stream.failure = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        ckpt.save(training(), step=1)
    stream.failure = None
    ckpt.save(training(), step=1).result(DONE_S)


def test_a_write_that_is_no_step_fails_the_save_and_later_ones_wait_for_their_copies(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    state = training()
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    for param in state["model"].parameters():
        param.data.add_(1)  # as the replay of a CUDA graph does it
    stream.release()
    with pytest.raises(errors.Aborted, match=r"tensor 'model\..* changed before .* overlap=False"):
        save.result(DONE_S)
    stream.hold(after=1)
    ckpt.save(state, step=1).result(DONE_S)
    assert stream.works == 3


def test_a_save_that_fails_waits_for_what_it_has_begun(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, beside: Any
) -> None:
    """The memory is another save's once it has failed: nothing may still be written there."""
    state = training() | {"other": torch.zeros(1 << 20)}
    run = stream.run

    def run_and_change(work: Callable[[], None]) -> Any:
        state["other"].add_(1)
        return run(work)

    stream.run = run_and_change  # type: ignore[method-assign]  # a device that something runs beside
    stream.hold(after=1)
    save = beside(lambda: ckpt.save(state, step=1))
    eventually(lambda: is_somebody_in("_settle"), timeout_s=DONE_S)
    assert not save.done()
    stream.release()
    with pytest.raises(errors.Aborted, match="'other' changed while it was copied"):
        save.result(DONE_S)
    assert stream.done == stream.works == 2


def test_a_daemon_that_goes_while_the_copy_runs_loses_that_save_alone(
    short_path: Path, tmp_path: Path, stream: ThreadStream
) -> None:
    state = training()
    with Daemon(short_path) as daemon, opened(daemon, tmp_path) as ckpt:
        stream.hold(after=1)
        save = ckpt.save(state, step=1)
        daemon.kill()
        daemon.start()
        stream.release()
        with pytest.raises(errors.CkptdError) as lost:
            save.result(DONE_S)
        assert not isinstance(lost.value, errors.Internal), lost.value
        before = values(state)
        ckpt.save(state, step=1).result(DONE_S)
        assert same(saved(daemon, tmp_path), before)


def test_a_driver_that_refuses_the_memory_is_told_once_and_saves_go_on(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream, caplog: pytest.LogCaptureFixture
) -> None:
    stream.refuses_after = 0
    state = training()
    with opened(daemon, tmp_path) as ckpt:
        for number in range(1, 4):
            ckpt.save(state, step=number).result(DONE_S)
    refused = [record for record in caplog.records if "not pinned" in record.getMessage()]
    assert len(refused) == 1
    assert "out of memory" in refused[0].getMessage()
    assert not stream.registered
    assert same(saved(daemon, tmp_path), values(state))


@pytest.mark.parametrize("how", ["prepare", "close"])
def test_a_thread_that_has_an_unexpected_failure_is_not_waited_for_for_ever_and_tells(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, how: str
) -> None:
    stream.hold(after=1)
    save = ckpt.save(training(), step=1)
    stream.failure = LookupError("a defect")  # type: ignore[assignment]  # of ours, not the device's
    stream.release()
    eventually(save.done, timeout_s=DONE_S)
    with pytest.raises(errors.Internal, match="could not be sealed: LookupError"):
        save.result(DONE_S)
    then = {"prepare": lambda: ckpt.prepare(training()), "close": ckpt.close}
    with pytest.raises(LookupError):
        then[how]()
    stream.failure = None


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where ranks say what they have done."""
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


@pytest.fixture
def job(
    daemon: Daemon, tmp_path: Path, notes: Path
) -> Iterator[Callable[[str, int], list[subprocess.Popen[str]]]]:
    """Starts ranks, and ends them."""
    with ExitStack() as stack:

        def start(what: str, count: int) -> list[subprocess.Popen[str]]:
            started = ranks.start(PROGRAM, tmp_path, what, notes, ranks=count, env=daemon.env)
            for process in started:
                stack.callback(process.communicate)
                stack.callback(process.kill)
            return started

        yield start


def note(notes: Path, word: str, processes: list[subprocess.Popen[str]]) -> str:
    def look() -> bool:
        ended = [process for process in processes if process.poll() not in (None, 0, -9)]
        assert not ended, ended[0].communicate()[0]
        return (notes / word).exists()

    eventually(look, timeout_s=DONE_S)
    return (notes / word).read_text()


def test_a_rank_that_dies_before_its_copy_is_complete_ends_the_save_by_name(
    tmp_path: Path, notes: Path, job: Any
) -> None:
    started = job("dies", 2)
    assert note(notes, "saved.0", started)
    pid = note(notes, "saved.1", started)
    started[1].kill()
    said = note(notes, "refused.0", started)
    assert "rank 1" in said
    assert pid in said
    assert [path.name for path in (tmp_path / "e" / "dies").glob("step-*")] == ["step-7"]


def test_a_process_that_ends_while_its_copy_runs_ends_when_it_is_sealed(
    tmp_path: Path, notes: Path, job: Any
) -> None:
    (started,) = job("leaves", 1)
    assert note(notes, "saved.0", [started])
    eventually((tmp_path / "e" / "leaves" / "step-8").exists, timeout_s=DONE_S)
    said, _ = started.communicate(timeout=DONE_S)
    assert (started.returncode, said) == (0, "")
