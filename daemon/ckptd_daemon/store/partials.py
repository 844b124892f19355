"""Unfinished files: preallocated data, and a journal of the chunks that are on the disk.

After a crash the journal is a claim, not a fact: every chunk is read again and compared with its
CRC32C before it counts. So neither a torn journal nor a lost write can put a wrong byte into a
blob, and the hot path needs no sync per chunk.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ckptd_daemon.store import durable, journal
from ckptd_daemon.store.journal import Header
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20
PAGE_BYTES = 4096
DATA = "data"
JOURNAL = "journal"


class DamagedError(Exception):
    """A chunk came with another CRC32C than it is known to have."""

    def __init__(self, index: int) -> None:
        super().__init__(f"chunk {index} was damaged on its way")
        self.index = index


class Partial:
    """One unfinished file. Its methods block; different chunks may be written by many threads."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.landed: dict[int, int] = {}  # chunk index to CRC32C
        self.expected: Mapping[int, int] = {}
        """The CRC32C of chunks that are known before they come."""
        self.landed_bytes = 0
        self.lives = 1
        """Rises when everything is forgotten."""
        self._lock = threading.Lock()  # guards what is above, and orders the journal
        self._data_fd = -1
        self._journal_fd = -1

    def __repr__(self) -> str:
        count = self.header.chunk_count or "?"
        return f"<Partial {self.path.name} [{len(self.landed)} of {count} chunks]>"

    def open(self) -> dict[int, int]:
        """Go on with what an earlier life left of this very version, or start from nothing.

        Returns the chunks that the journal claims, and their CRC32C, for `recheck`. Raises
        `FailedPrecondition`, and touches nothing, if another version of ckptd left it.
        """
        earlier = self._earlier()
        if earlier is None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.begin()
            if self.header.size_bytes is not None:
                durable.preallocate(self._data_fd, _page_up(self.header.size_bytes))
            header = journal.encode_header(self.header)  # a claim, like what follows it: no sync
            durable.write_file(self.path / JOURNAL, header, mode=0o600, survives=False)
        else:
            _unseal(self.path / DATA)
            self._open_data()
        with durable.explained(self.path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._journal_fd = os.open(self.path / JOURNAL, flags)
            if earlier is not None:
                os.ftruncate(self._journal_fd, earlier.valid_bytes)
        return {} if earlier is None else earlier.chunks

    def begin(self) -> None:
        """Start from nothing and without a journal: what comes in one piece is not gone on with."""
        with durable.explained(self.path):
            self.path.mkdir(mode=0o700)
        self._open_data()

    def _open_data(self) -> None:
        self._data_fd, _ = durable.open_direct(self.path / DATA, os.O_RDWR | os.O_CREAT, mode=0o600)

    def _earlier(self) -> journal.Journal | None:
        parsed = claimed(self.path)
        is_ours = parsed is not None and parsed.header == self.header and self.header.is_resumable
        return parsed if is_ours else None

    def close(self) -> None:
        """Let go of the files; what has landed stays."""
        with self._lock:
            for fd in (self._data_fd, self._journal_fd):
                if fd >= 0:
                    os.close(fd)
            self._data_fd = self._journal_fd = -1

    def reader(self) -> int | None:
        """Open the data for reading only, wherever it moves; None once this partial is closed.

        What of it has landed may be read, and nothing else.
        """
        with self._lock:
            if self._data_fd < 0:
                return None
            return os.open(f"/proc/self/fd/{self._data_fd}", os.O_RDONLY | os.O_CLOEXEC)

    def write(self, block: memoryview, length: int, offset: int) -> None:
        """Write the first *length* bytes of a page-aligned *block*, padded to whole pages.

        With zeros: who may read this file may not read what else the memory was used for.
        """
        padded = _page_up(length)
        block[length:padded] = bytes(padded - length)
        durable.pwrite_all(self._data_fd, block[:padded], offset)

    def record(self, index: int, crc: int, size_bytes: int) -> None:
        """Note that chunk *index* is written; raises `DamagedError` if it cannot be right."""
        if self.expected.get(index, crc) != crc:
            raise DamagedError(index)
        with self._lock:
            if self._journal_fd >= 0:
                with durable.explained(self.path, need_bytes=journal.RECORD_BYTES):
                    os.write(self._journal_fd, journal.encode_record(index, crc))
            self.landed[index] = crc
            self.landed_bytes += size_bytes

    def missing(self) -> list[int]:
        """Return the chunks that have not landed; none while the size is unknown."""
        return [index for index in range(self.header.chunk_count) if index not in self.landed]

    def forget(self) -> None:
        """Start from nothing again."""
        with self._lock:
            os.ftruncate(self._journal_fd, len(journal.encode_header(self.header)))
            self.landed.clear()
            self.landed_bytes = 0
            self.lives += 1

    def recheck(self, index: int, crc: int, buffer: memoryview) -> None:
        """Take over a claimed chunk if its bytes on the disk are still what the journal says."""
        start, end = self.header.extent(index)
        is_known = self.expected.get(index, crc) == crc
        if not is_known or self._crc_on_disk(start, end, buffer) != crc:
            logger.warning("chunk %d of partial %s is damaged", index, self.path.name)
            return
        with self._lock:
            self.landed[index] = crc
            self.landed_bytes += end - start

    def adopt(self, index: int, source: Path, crc: int, buffer: memoryview) -> bool:
        """Copy chunk *index* from another file of this version if it is sound there."""
        start, end = self.header.extent(index)
        try:
            with source.open("rb", buffering=0) as file:
                is_sound = self._copy(file.fileno(), start, end, buffer) == crc
        except FileNotFoundError:
            return False
        if is_sound:
            self.record(index, crc, end - start)
        return is_sound

    def _copy(self, fd: int, start: int, end: int, buffer: memoryview) -> int | None:
        """Return the CRC32C of `[start, end)` of *fd*; None if the disk does not have all of it."""
        crc = 0
        for at in range(start, end, len(buffer)):
            block = buffer[: min(len(buffer), end - at)]
            try:
                got = os.preadv(fd, [block], at)
            except OSError as error:
                logger.warning("chunk of partial %s cannot be copied: %s", self.path.name, error)
                return None
            if got < len(block):
                return None
            crc = crc32c(block, crc)
            self.write(buffer, len(block), at)
        return crc

    def _crc_on_disk(self, start: int, end: int, buffer: memoryview) -> int | None:
        """Return the CRC32C of `[start, end)`; None where the disk cannot read it."""
        crc = 0
        try:
            for block in self.blocks(start, end, buffer):
                crc = crc32c(block, crc)
        except errors.Unavailable as error:
            logger.warning("chunk of partial %s cannot be read: %s", self.path.name, error)
            return None
        return crc

    def blocks(self, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
        """Read `[start, end)` back from the disk, block by block through *buffer*.

        Raises `Unavailable` where the disk cannot read.
        """
        while start < end:
            want = min(len(buffer), end - start)
            with durable.explained(self.path):
                got = os.preadv(self._data_fd, [buffer[: _page_up(want)]], start)
            yield buffer[: min(got, want)]
            if got < want:
                return  # the file ends here; what it lacks shows in the checksum
            start += want

    def seal(self, size_bytes: int) -> None:
        """Cut the padding off, make the file read-only and everything in it durable."""
        os.ftruncate(self._data_fd, size_bytes)
        os.fchmod(self._data_fd, 0o444)
        durable.sync_file(self._data_fd)


def claimed(path: Path) -> journal.Journal | None:
    """Return what the journal of the partial at *path* claims; None if it is torn or not there.

    Raises `FailedPrecondition` if another version of ckptd wrote it.
    """
    try:
        return journal.parse((path / JOURNAL).read_bytes())
    except FileNotFoundError:
        return None
    except journal.FormatError as error:
        text = f"{path / JOURNAL} {error}: upgrade ckptd, or remove {path}"
        raise errors.FailedPrecondition(text) from error


def _unseal(path: Path) -> None:
    """Let the data be written again, if an earlier life died between sealing and publishing it."""
    with suppress(FileNotFoundError), durable.explained(path):
        path.chmod(0o600)


def _page_up(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
