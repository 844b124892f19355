"""Mends a committed checkpoint: what is good in several copies of it makes one that is good.

A file is replaced, never changed: it may be linked from another step, and somebody may read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ckptd.link.connection import Connection
from ckptd.saving.memory import lent
from ckptd.saving.verification import (
    CHUNK_BYTES,
    MANIFEST,
    SUMS,
    Fault,
    Findings,
    parsed,
    read_manifest,
    sync_dir,
    verify,
)
from ckptd.tensors.copies import Copy
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

Source = Callable[[str, int, int], bytes]
"""Returns so many bytes of a file, from one on; fewer, or none, where it has no more."""


def repair(findings: Findings, copies: Sequence[Path]) -> tuple[Findings, list[str]]:
    """Replace what *findings* names by what is good in *copies*.

    *copies* are other directories of the same attempt; others are left alone. A manifest comes from
    one that is of the same attempt by its id, or by all checksums that lie here. What this node's
    daemon, if one runs, still has in memory is another copy. A file of checksums is made again
    from its image. Returns what is found then, and the names of the files that were replaced.
    Raises `PermissionDenied` if this user may not write there, `NotFound` if it has gone.
    """
    mended: list[str] = []
    while not findings.is_sound:
        more = [name for name in _repair(findings, copies) if name not in mended]
        mended += more
        if not findings.path.is_dir():
            raise _gone(findings.path)
        if not more:
            break
        findings = verify(findings.path)  # what was behind it comes to light
    return findings, mended


def _repair(findings: Findings, copies: Sequence[Path]) -> list[str]:
    """Replace what can be; return the names of the good files."""
    manifest = read_manifest(findings.path)
    with _explained(findings.path):
        if isinstance(manifest, Fault):
            return [MANIFEST] if _mend_manifest(findings.path, copies) else []
        same = [copy for copy in copies if _is_same(copy, manifest)]
        with _in_memory(manifest["attempt"]) as remembered:
            files = [partial(_read, directory) for directory in (findings.path, *same)]
            sources = [*files, partial(_read_memory, remembered)]
            mend = _Mending(findings.path, sources, manifest["images"])
            bad = dict.fromkeys(fault.file for fault in findings.faults)
            return [file for file in bad if mend(file)]


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        text = f"this user may not write in {directory}; run it as the daemon's user"
        raise errors.PermissionDenied(text) from error
    except FileNotFoundError as error:
        raise _gone(directory) from error


def _mend_manifest(directory: Path, copies: Sequence[Path]) -> bool:
    """Take over the manifest of one of *copies*, if it is that of what lies in *directory*."""
    own = [partial(_read, directory)]
    for data in (_read(copy, MANIFEST, 0, -1) for copy in copies):
        manifest = parsed(directory, data)
        if isinstance(manifest, Fault):
            continue
        mend = _Mending(directory, own, manifest["images"])
        is_named = manifest["attempt"].encode() in _read(directory, MANIFEST, 0, -1)
        if is_named or mend.is_vouched_for_by(manifest):
            return mend.replace(MANIFEST, partial(_write, data))
    return False


def _write(data: bytes, fd: int) -> bool:
    return os.pwrite(fd, data, 0) == len(data)


def _gone(directory: Path) -> errors.NotFound:
    return errors.NotFound(f"{directory} was removed while it was being mended; name another")


@contextmanager
def _in_memory(attempt: str) -> Iterator[Mapping[str, Copy]]:
    """Give what the daemon that runs here has of *attempt* in memory; nothing if none runs."""
    try:
        connection = Connection.existing()
    except errors.CkptdError:
        yield {}
        return
    with lent(connection, attempt) as images:
        yield images


def _is_same(copy: Path, manifest: dict[str, Any]) -> bool:
    found = read_manifest(copy)
    return isinstance(found, dict) and found["attempt"] == manifest["attempt"]


class _Mending:
    """Makes good files of what is good in several sources."""

    def __init__(self, directory: Path, sources: Sequence[Source], images: dict[str, Any]) -> None:
        self._directory = directory
        self._sources = sources
        self._images = images

    def __call__(self, file: str) -> bool:
        """Replace *file*; False if no source has what is missing."""
        name = file.removesuffix(SUMS)
        if (image := self._images.get(name)) is None:
            return False  # the manifest itself
        sums = next(self._sums(name, image), None)
        if sums is None:
            return False
        if file != name:
            return self.replace(file, partial(_write, sums))
        crcs: list[int] = json.loads(sums)["crc32c"]
        return self.replace(name, lambda fd: self._write_image(fd, name, crcs, image))

    def is_vouched_for_by(self, manifest: Mapping[str, Any]) -> bool:
        """Say whether *manifest*, of this run, names the checksums of all that lies here."""
        here = self._directory.resolve().parts[-3:-1]
        if (manifest["experiment"], manifest["run"]) != here:
            return False
        return all(any(self._sums(name, image)) for name, image in self._images.items())

    def replace(self, name: str, write: Callable[[int], bool]) -> bool:
        """Put a file of *write* in the place of *name*, which may be linked from elsewhere."""
        beside = self._directory / f".{name}.{secrets.token_hex(4)}.tmp"
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if not write(fd):
                return False
            os.fsync(fd)
            beside.rename(self._directory / name)
        finally:
            os.close(fd)
            beside.unlink(missing_ok=True)
        sync_dir(self._directory)
        return True

    def _sums(self, name: str, image: dict[str, Any]) -> Iterator[bytes]:
        """Yield the file of checksums that the manifest vouches for, as often as it is found."""
        of_files = (source(name + SUMS, 0, -1) for source in self._sources)
        recomputed = (_recomputed(source, name, image["size_bytes"]) for source in self._sources)
        for found in (of_files, recomputed):
            for data in found:
                if hashlib.sha256(data).hexdigest() == image["sums_sha256"]:
                    yield data

    def _write_image(self, fd: int, name: str, sums: list[int], image: dict[str, Any]) -> bool:
        for chunk, want in enumerate(sums):
            start = chunk * CHUNK_BYTES
            length = min(CHUNK_BYTES, image["size_bytes"] - start)
            for source in self._sources:
                data = source(name, start, length)
                if len(data) == length and crc32c(data) == want:
                    break
            else:
                return False
            if os.pwrite(fd, data, start) != length:
                return False
        return True


def _recomputed(source: Source, name: str, size_bytes: int) -> bytes:
    """Return the file of checksums that an image would have been saved with."""
    starts = range(0, size_bytes, CHUNK_BYTES)
    lengths = [min(CHUNK_BYTES, size_bytes - start) for start in starts]
    found = [
        crc32c(source(name, start, length)) for start, length in zip(starts, lengths, strict=True)
    ]
    record = {
        "format": 1,
        "size_bytes": size_bytes,
        "chunk_bytes": CHUNK_BYTES,
        "crc32c": found,
    }
    return json.dumps(record).encode()


def _read(directory: Path, name: str, start: int, length: int) -> bytes:
    try:
        with (directory / name).open("rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError:
        return b""


def _read_memory(images: Mapping[str, Copy], name: str, start: int, length: int) -> bytes:
    data = bytearray(max(0, length))
    if name not in images:
        return b""
    try:
        images[name].read(memoryview(data), start)
    except (errors.DataLoss, OSError):
        return b""
    return bytes(data)
