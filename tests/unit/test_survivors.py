"""What a daemon finds in its arena: what it believes, what it counts, and what it leaves alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ckptd_daemon.save.arena import headers, slots
from ckptd_daemon.save.arena.slots import SlotFile, head_of
from ckptd_daemon.save.arena.survivors import LostSlot, survivors
from ckptd_daemon.save.arena.uses import Holder
from ckptd_daemon.save.attempts import Attempt, Image, JobKey
from ckptd_daemon.save.places import Place
from ckptd_daemon.sessions import Process
from ckptd_proto import errors

PAGE = headers.PAGE_BYTES
IMAGES = (Image("a", 10), Image("b", PAGE + 1))
JOB = JobKey("job", Place(Path("/root"), "e", "r"), "i", 1, os.geteuid())
ATTEMPT = Attempt("1-a", JOB, 1, 7, "plan", replaces=False)
LAID, SIZE = headers.layout(IMAGES)
SEALED = headers.encode(headers.sealed_by(0, ATTEMPT.with_seal(0, IMAGES, plan=IMAGES), LAID))
AS_OLDER = SEALED[:8] + headers.IN_SLOT_FORMAT.to_bytes(4, "little") + SEALED[12:]
HERE = Process.of_pid(os.getpid(), os.getuid())


def taken(process: Process) -> headers.Taken:
    return Holder.of(0, JOB.place, process.uid, process=process).taken("1-a")


def left(arena: Path, **options: bool) -> list[SlotFile | LostSlot]:
    """Return what a daemon that starts finds, closed again."""
    options = {"believes_slots": False, "trusts_own": True} | options
    found = [one if isinstance(one, LostSlot) else one[0] for one in survivors(arena, **options)]
    for one in found:
        one.close()
    return found


def names(arena: Path) -> list[str]:
    return sorted(path.suffix for path in arena.iterdir())


@pytest.fixture
def slot(tmp_path: Path) -> SlotFile:
    """A new slot, closed by the end of its daemon."""
    return slots.create(tmp_path, SIZE)


def test_what_was_sealed_is_found_and_nobodys_is_removed(tmp_path: Path, slot: SlotFile) -> None:
    slot.seal(SEALED)
    slots.create(tmp_path, SIZE).close()
    assert [one.path for one in left(tmp_path)] == [slot.path]
    assert names(tmp_path) == [".head", ".slot"]
    slot.unseal()
    assert left(tmp_path) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("trusts_own", [True, False])
def test_what_its_own_user_could_cut_is_mapped_only_by_a_daemon_that_serves_nobody_else(
    tmp_path: Path, slot: SlotFile, trusts_own: bool
) -> None:
    slot.seal(SEALED)
    (found,) = left(tmp_path, trusts_own=trusts_own)
    assert isinstance(found, SlotFile)
    assert (found.view is not None) is trusts_own


def test_a_head_without_its_slot_is_removed(tmp_path: Path, slot: SlotFile) -> None:
    slot.path.unlink()
    assert left(tmp_path) == []
    assert names(tmp_path) == []


def test_what_a_client_writes_at_the_start_of_a_slot_is_not_read(
    tmp_path: Path, slot: SlotFile
) -> None:
    slot.take(taken(replace(HERE, started=1)))
    os.pwrite(slot.fd, AS_OLDER, 0)
    assert left(tmp_path, believes_slots=True) == []


def test_a_slot_that_its_writer_has_cut_is_not_finished(
    tmp_path: Path, slot: SlotFile, caplog: pytest.LogCaptureFixture
) -> None:
    slot.seal(SEALED)
    os.ftruncate(slot.fd, SIZE - 1)
    assert left(tmp_path) == []
    assert "step 7 of /root/e/r, which was staged in it, is lost" in caplog.text
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (SEALED[:8] + (headers.FORMAT + 1).to_bytes(4, "little") + SEALED[12:], "newer ckptd"),
        (headers._packed(headers.KEPT, {}), "root"),
        (headers._packed(headers.KEPT, {"root": []}), "cannot be taken up"),
        (headers._packed(b"CKPTTAKE", {"writer": [1]}), "cannot be taken up"),
    ],
)
def test_what_cannot_be_read_is_logged_and_left_alone(
    tmp_path: Path, slot: SlotFile, head: bytes, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    slots._write_head(slot.head_fd, head)
    assert left(tmp_path) == []
    assert told in caplog.text
    assert names(tmp_path) == [".head", ".slot"]


def test_a_torn_head_is_nobodys(tmp_path: Path, slot: SlotFile) -> None:
    slots._write_head(slot.head_fd, SEALED[:-1] + b"x")
    assert left(tmp_path) == []
    assert names(tmp_path) == []


def test_a_long_head_that_is_killed_half_way_leaves_the_writer_known(
    tmp_path: Path, slot: SlotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {f"metric {number}": 0.5 for number in range(1000)}
    sealed = ATTEMPT.with_seal(0, IMAGES, plan=IMAGES, metrics=metrics)
    slot.take(taken(HERE))
    true, offsets = slots.durable.pwrite_all, []

    def killed(fd: int, data: memoryview, offset: int) -> None:
        offsets.append(offset)
        if offset == 0:
            raise KeyboardInterrupt
        true(fd, data, offset)

    monkeypatch.setattr(slots.durable, "pwrite_all", killed)
    with pytest.raises(KeyboardInterrupt):
        slot.seal(headers.encode(headers.sealed_by(0, sealed, LAID)))
    assert offsets == [PAGE, 0]
    assert [type(one) for one in left(tmp_path)] == [LostSlot]


def test_a_slot_is_lost_while_its_writer_lives(tmp_path: Path, slot: SlotFile) -> None:
    slot.take(taken(HERE))
    (lost,) = left(tmp_path)
    assert isinstance(lost, LostSlot)
    assert (lost.taken, lost.size_bytes) == (taken(HERE), SIZE)
    slot.take(taken(replace(HERE, started=HERE.started + 1)))  # the pid was given away again
    assert left(tmp_path) == []
    assert names(tmp_path) == []


def test_of_a_writer_that_cannot_be_seen_the_kernel_knows(tmp_path: Path, slot: SlotFile) -> None:
    slot.take(taken(Process(0, -7, 1000)))
    (lost,) = left(tmp_path)
    assert isinstance(lost, LostSlot)
    assert not lost.is_over
    slot.close()
    assert lost.is_over
    assert left(tmp_path) == []


def test_what_an_older_daemon_sealed_in_the_slot_is_taken_up_where_nobody_else_could_write(
    tmp_path: Path, slot: SlotFile
) -> None:
    os.pwrite(slot.fd, AS_OLDER, 0)
    head_of(slot.path).unlink()
    (found,) = left(tmp_path, believes_slots=True)
    assert found.path == slot.path
    ((_, header),) = list(
        survivors(tmp_path, believes_slots=False, trusts_own=True)
    )  # it has a head by now
    assert isinstance(header, headers.Header)
    assert (header.laid, header.attempt.job) == (LAID, JOB)
    head_of(slot.path).unlink()
    assert left(tmp_path, believes_slots=False) == []
    assert names(tmp_path) == []


def test_an_older_daemon_takes_a_sealed_slot_for_newer_and_an_empty_one_for_empty(
    slot: SlotFile,
) -> None:
    slot.seal(SEALED)
    magic, form = os.pread(slot.fd, 8, 0), os.pread(slot.fd, 4, 8)
    assert (magic, form) == (b"CKPTSLOT", headers.FORMAT.to_bytes(4, "little"))
    slot.unseal()
    assert os.pread(slot.fd, 12, 0) == bytes(12)


@pytest.mark.parametrize("is_mapped", [True, False])
def test_what_a_client_has_cut_is_an_error_and_no_signal(tmp_path: Path, is_mapped: bool) -> None:
    slot = slots.create(tmp_path, SIZE, is_mapped=is_mapped)
    assert (slot.view is not None) == is_mapped
    os.pwrite(slot.fd, b"content", 2 * PAGE)
    with slot.reading(2 * PAGE, PAGE) as memory:
        assert memory[:8] == b"content\0"
    os.ftruncate(slot.fd, 2 * PAGE + 7)
    with pytest.raises(errors.DataLoss, match="a process has cut it"), slot.reading(2 * PAGE, PAGE):
        pass
    with pytest.raises(errors.DataLoss, match="save again"):
        slot.seal(SEALED)
