"""Slots that an earlier daemon left: what is in each, and whether somebody still writes into it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptd_daemon.save.arena import headers, slots
from ckptd_daemon.save.arena.slots import HEAD_SUFFIX, SUFFIX, SlotFile, head_of
from ckptd_daemon.store import durable, readers
from ckptd_proto import errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostSlot:
    """A slot that an earlier daemon left, and that a process may be writing into even now.

    It is not opened: so the kernel can tell whether anybody else has it.
    """

    path: Path
    size_bytes: int
    taken: headers.Taken

    @property
    def is_over(self) -> bool:
        """The process that had it is dead; of one that we cannot see: nobody has it open."""
        process = self.taken.process
        if process.pid == 0:
            return not readers.in_use(self.path)
        return process.has_ended

    def destroy(self) -> None:
        """Give the memory back, even where a client still maps it."""
        _give_back(self.path)

    def close(self) -> None:
        """Leave it to the next daemon."""


def survivors(
    directory: Path, *, believes_slots: bool, trusts_own: bool
) -> Iterator[tuple[SlotFile, headers.Header] | LostSlot]:
    """Yield what an earlier daemon left sealed, the latest last, and what is still written into.

    Removes what it left otherwise. What this daemon cannot read is left alone, and logged. If it
    *believes_slots*, what a daemon before format 2 has sealed, in memory that its clients could
    write, is taken up as well. If it *trusts_own*, slots of its own user are mapped.
    """
    for head in directory.glob(f"*{HEAD_SUFFIX}"):
        if not head.with_suffix(SUFFIX).exists():
            head.unlink()
    for path in sorted(directory.glob(f"*{SUFFIX}"), key=_changed):
        try:
            found = _found(path, believes_slots=believes_slots, trusts_own=trusts_own)
        except headers.NewerFormat as newer:
            text = "%s was sealed in format %s by a newer ckptd and is left alone; start that one"
            logger.error(text, path, newer)
        except (headers.Unreadable, OSError, errors.CkptdError) as error:
            text = "%s cannot be taken up (%r) and is left alone; remove it and its head"
            logger.error(text, path, error)
        else:
            if found is not None:
                yield found


def _found(
    path: Path, *, believes_slots: bool, trusts_own: bool
) -> tuple[SlotFile, headers.Header] | LostSlot | None:
    """Return what is in the slot; None if it is nobody's, and gone now."""
    is_older = not head_of(path).exists()
    read_head = _head_in_slot if is_older else _head
    found = read_head(path)
    size_bytes = path.lstat().st_size
    if isinstance(found, headers.Taken):
        lost = LostSlot(path, size_bytes, found)
        if not lost.is_over:
            return lost
    elif found is not None and is_older and not believes_slots:
        text = "%s was sealed by an older ckptd, where users of this daemon could write: removed"
        logger.error(text, path)
    elif found is not None and size_bytes < headers.end_of(found):
        text = "a process has cut %s to %d bytes: step %d of %s, which was staged in it, is lost"
        logger.error(text, path, size_bytes, found.attempt.step, found.attempt.job.place)
    elif found is not None:
        if is_older:  # give it the head that it lacks
            durable.write_file(head_of(path), _start(path), mode=0o600, survives=False)
        is_mapped = trusts_own and found.attempt.job.uid == os.geteuid()
        return slots.reopen(path, size_bytes, is_mapped=is_mapped), found
    _give_back(path)
    return None


def _head(path: Path) -> headers.Header | headers.Taken | None:
    return headers.decode(_start(head_of(path)))


def _head_in_slot(path: Path) -> headers.Header | None:
    return headers.decode_in_slot(_start(path))


def _start(path: Path) -> bytes:
    """Return what of the file `headers.decode` wants to see."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(fd, headers.needed_bytes(os.pread(fd, headers.PAGE_BYTES, 0)), 0)
    finally:
        os.close(fd)


def _changed(path: Path) -> int:
    """Return when the slot was last sealed, or kept."""
    head = head_of(path)
    return (head if head.exists() else path).lstat().st_mtime_ns


def _give_back(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # somebody has removed it: who has it open has its memory
        head_of(path).unlink(missing_ok=True)
        return
    try:
        slots.give_back(path, fd)
    finally:
        os.close(fd)
