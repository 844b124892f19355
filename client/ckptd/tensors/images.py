"""The files of a committed checkpoint, read in ranges, every byte checked before it is used."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from crc32c import crc32c

from ckptd_proto import errors

_MANIFEST = "manifest.json"
_FORMAT = 1
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class Images:
    """The images of one checkpoint, with the checksums that its manifest vouches for.

    While this object lives the checkpoint is being read, and nobody removes it: the manifest is
    locked, and the directory open, so that what is renamed meanwhile still is what it was.
    """

    def __init__(self, directory: Path, images: dict[str, Any], held: Held) -> None:
        self._directory = directory
        self._images = images
        self._held = held
        self._sums: dict[str, Sums] = {}

    @classmethod
    def open(cls, directory: Path, uuid: str | None = None) -> Self:
        """Return the images of *directory*, which the attempt *uuid* has made, if given.

        Raises `NotFound` if nothing is committed there, and `Aborted` if it is another's by now.
        """
        path = directory / _MANIFEST
        try:
            held = Held(directory)
            raw = _parsed(path, held.read(_MANIFEST))
        except FileNotFoundError as error:
            text = f"this process sees no {path}: is the directory mounted here as for the daemon?"
            raise errors.NotFound(text) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if uuid is not None and raw["attempt"] != uuid:
            text = f"{directory} was replaced by attempt {raw['attempt']} while it was looked at"
            raise errors.Aborted(f"{text}; load again")
        return cls(directory, raw["images"], held)

    def read(self, name: str) -> bytes:
        """Return a whole image."""
        sums = self.sums(name)
        data = bytearray(sums.size_bytes)
        with self.cursor(name) as cursor:
            cursor.read_into(memoryview(data), 0)
        return bytes(data)

    @contextmanager
    def cursor(self, name: str) -> Iterator[Cursor]:
        """Open an image for reading by one thread, best by rising offset."""
        sums = self.sums(name)
        path = self._directory / name
        try:
            fd = self._held.open(name)
        except FileNotFoundError as error:
            raise errors.DataLoss(f"{path} is missing; load another step") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            yield Cursor(path, fd, sums)
        finally:
            os.close(fd)

    def sums(self, name: str) -> Sums:
        """Return the checksums of an image; raises `DataLoss` if they are not the manifest's."""
        if name not in self._sums:
            self._sums[name] = self._read_sums(name)
        return self._sums[name]

    def _read_sums(self, name: str) -> Sums:
        path = self._directory / f"{name}.sums"
        if name not in self._images:
            text = f"{self._directory / _MANIFEST} knows no {name}; load another step"
            raise errors.DataLoss(text)
        try:
            data = self._held.read(path.name)
        except FileNotFoundError as error:
            raise errors.DataLoss(f"{path} is missing; load another step") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if hashlib.sha256(data).hexdigest() != self._images[name]["sums_sha256"]:
            text = f"{path} is not what the manifest says; load another step"
            raise errors.DataLoss(text)
        raw = _parsed(path, data)
        return Sums(raw["size_bytes"], raw["chunk_bytes"], raw["crc32c"])


class Held:
    """A checkpoint's directory, open, and its manifest under a shared lock, while this lives."""

    def __init__(self, directory: Path) -> None:
        """Open it; raises `Aborted` if it is being removed, and `OSError`."""
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._directory)
        manifest = self.open(_MANIFEST)
        weakref.finalize(self, os.close, manifest)
        try:
            fcntl.flock(manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.Aborted(f"{directory} is being removed; load another step") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def open(self, name: str) -> int:
        """Return a descriptor of the file *name*."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, dir_fd=self._directory)

    def read(self, name: str) -> bytes:
        """Return what is in the file *name*."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read()


class Sums:
    """The checksums of one image, a chunk at a time."""

    def __init__(self, size_bytes: int, chunk_bytes: int, crcs: list[int]) -> None:
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self._crcs = crcs

    def bounds(self, chunk: int) -> tuple[int, int]:
        """Return the half-open range of bytes of *chunk*."""
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size_bytes)

    def matches(self, chunk: int, data: memoryview) -> bool:
        """Say whether *data* is what was written as *chunk*."""
        return chunk < len(self._crcs) and crc32c(data) == self._crcs[chunk]


class Cursor:
    """Reads one image; keeps the chunk it read last, for the small pieces that share it."""

    def __init__(self, path: Path, fd: int, sums: Sums) -> None:
        self._path = path
        self._fd = fd
        self._sums = sums
        self._scratch = memoryview(b"")
        self._scratch_chunk = -1

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill *target* with the bytes at *offset*; raises `DataLoss`, naming file and chunk."""
        end = offset + len(target)
        if end > self._sums.size_bytes:
            text = f"{self._path} ends at {self._sums.size_bytes}, before {end}; load another step"
            raise errors.DataLoss(text)
        at = offset
        while at < end:
            chunk = at // self._sums.chunk_bytes
            start, stop = self._sums.bounds(chunk)
            until = min(stop, end)
            part = target[at - offset : until - offset]
            if (at, until) == (start, stop):
                self._read_chunk(chunk, part)
            else:
                part[:] = self._chunk(chunk)[at - start : until - start]
            at = until

    def _chunk(self, chunk: int) -> memoryview:
        if chunk != self._scratch_chunk:
            start, stop = self._sums.bounds(chunk)
            self._scratch_chunk = -1
            if len(self._scratch) < stop - start:
                self._scratch = memoryview(bytearray(self._sums.chunk_bytes))
            self._read_chunk(chunk, self._scratch[: stop - start])
            self._scratch_chunk = chunk
        return self._scratch

    def _read_chunk(self, chunk: int, target: memoryview) -> None:
        start, stop = self._sums.bounds(chunk)
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], start + done)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if count == 0:
                text = f"{self._path} is cut off at byte {start + done}; load another step"
                raise errors.DataLoss(text)
            done += count
        if not self._sums.matches(chunk, target):
            text = (
                f"{self._path} is corrupt in chunk {chunk} (bytes {start} to {stop}): its CRC32C"
                " is not the one that was saved; load another step"
            )
            raise errors.DataLoss(text)


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(data)
        version = raw["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise errors.DataLoss(f"{path} is damaged ({error}); load another step") from error
    if version != _FORMAT:
        text = f"{path} has format {version}, and this ckptd reads {_FORMAT}: upgrade it"
        raise errors.Unimplemented(text)
    return raw


def _unreadable(path: Path, error: OSError) -> errors.CkptdError:
    if isinstance(error, PermissionError):
        text = f"this process may not read {path}: give it the right, or load as another user"
        return errors.PermissionDenied(text)
    return errors.Unavailable(f"cannot read {path} ({error}); try again or load another step")
