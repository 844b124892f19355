"""The files of a committed checkpoint, read in ranges, every byte checked before it is used."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from ckptd.tensors.copies import Copy, File, unreadable
from ckptd.tensors.cursors import Cursor, Sums
from ckptd_proto import errors

_MANIFEST = "manifest.json"
_FORMAT = 1
_NOT_OURS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class Images:
    """The images of one checkpoint, with the checksums that its manifest vouches for.

    While this object lives the checkpoint is being read, and nobody removes it: the manifest is
    locked, and the directory open, so that what is renamed meanwhile still is what it was.
    """

    def __init__(self, directory: Path, attempt: str, images: dict[str, Any], held: Held) -> None:
        self.attempt = attempt
        """The uuid of who has made them."""
        self._directory = directory
        self._images = images
        self._held = held
        self._sums: dict[str, Sums] = {}
        self._memory: dict[str, Copy] = {}
        self._on_corrupt: Callable[[str, str], None] | None = None
        self._shared: Mapping[str, int] = {}
        self.suspects: dict[str, int | None] = {}
        """Images no copy of which is what was saved, and the chunk that is not, if that is known."""

    @classmethod
    def open(cls, directory: Path, uuid: str | None = None) -> Self:
        """Return the images of *directory*, which the attempt *uuid* has made, if given.

        Raises `NotFound` if nothing is committed there, `DataLoss` if its manifest is damaged, and
        `Aborted` if it is another's by now.
        """
        path = directory / _MANIFEST
        try:
            held = Held(directory)
            attempt, images = _made(path, held.read(_MANIFEST))
        except FileNotFoundError as error:
            text = f"this process sees no {path}: is the directory mounted here as for the daemon?"
            raise errors.NotFound(text) from error
        except OSError as error:
            raise unreadable(path, error) from error
        if uuid is not None and attempt != uuid:
            text = f"{directory} was replaced by attempt {attempt} while it was looked at"
            raise errors.Aborted(f"{text}; load again")
        return cls(directory, attempt, images, held)

    def prefer(self, memory: Mapping[str, Copy], on_corrupt: Callable[[str, str], None]) -> None:
        """Read the images that lie in *memory* there, while they are what was saved.

        *on_corrupt* hears, in the reading thread, of each image that is not, and why; it is read
        from its file then.
        """
        self._memory = dict(memory)
        self._on_corrupt = on_corrupt

    def share(self, shared: Mapping[str, int]) -> None:
        """Leave in the page cache what other processes here read, too: bit n is chunk n, by image."""
        self._shared = shared

    def share_all(self) -> None:
        """Leave everything that is read in the page cache: others may read the same."""
        self._shared = dict.fromkeys(self._images, -1)  # every bit is set

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
        file = File(self._directory / name, lambda: self._held.open(name))
        with closing(file):
            memory, shared = self._memory.get(name), self._shared.get(name, 0)
            cursor = Cursor(sums, file, memory, lambda why: self._discard(name, why), shared)
            try:
                yield cursor
            except errors.DataLoss:
                if self.suspects.get(name) is None:
                    self.suspects[name] = cursor.bad_chunk
                raise

    def _discard(self, name: str, why: str) -> None:
        """Read *name* in memory no more; of several threads that find out one tells."""
        if self._memory.pop(name, None) is not None and self._on_corrupt is not None:
            self._on_corrupt(name, why)

    def sums(self, name: str) -> Sums:
        """Return the checksums of an image; raises `DataLoss` if they are not the manifest's."""
        if name not in self._sums:
            try:
                self._sums[name] = self._read_sums(name)
            except errors.DataLoss:
                if name in self._images:
                    self.suspects[name] = None
                raise
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
            raise unreadable(path, error) from error
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

    def is_at(self, directory: Path) -> bool:
        """Say whether it still is what is called *directory*."""
        try:
            return os.path.samestat(os.fstat(self._directory), directory.stat())
        except FileNotFoundError:
            return False

    def open(self, name: str) -> int:
        """Return a descriptor of the file *name*."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, dir_fd=self._directory)

    def read(self, name: str) -> bytes:
        """Return what is in the file *name*."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read()


def _made(path: Path, data: bytes) -> tuple[str, dict[str, Any]]:
    """Return who has made a checkpoint, and what its manifest says of each image."""
    raw = _parsed(path, data)
    try:
        images: dict[str, Any] = raw["images"]
        for image in images.values():
            int(image["size_bytes"]), str(image["sums_sha256"])
        return str(raw["attempt"]), images
    except _NOT_OURS as error:
        raise _damaged(path, error) from error


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(data)
        check_format(path, raw["format"])
    except _NOT_OURS as error:
        raise _damaged(path, error) from error
    return raw


def check_format(path: Path, found: Any) -> None:
    """Raise `Unimplemented` if the file is of a later ckptd, `ValueError` if it has no format."""
    if isinstance(found, int) and found > _FORMAT:
        text = f"{path} has format {found}, and this ckptd reads {_FORMAT}: upgrade it"
        raise errors.Unimplemented(text)
    if found != _FORMAT:
        raise ValueError(f"its format is {found!r}")


def _damaged(path: Path, error: Exception) -> errors.DataLoss:
    return errors.DataLoss(f"{path} is damaged ({error!r}); load another step")
