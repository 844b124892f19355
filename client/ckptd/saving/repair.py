"""Mends a committed checkpoint: what is good in several copies of it makes one that is good.

A file is replaced, never changed: it may be linked from another step, and somebody may read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crc32c import crc32c

from ckptd.saving.verification import (
    CHUNK_BYTES,
    SUMS,
    Fault,
    Findings,
    crcs,
    read_manifest,
    read_sums,
)
from ckptd_proto import errors


def repair(findings: Findings, copies: Sequence[Path]) -> list[str]:
    """Replace what *findings* names by what is good in *copies*; returns the names of good files.

    *copies* are other directories of the same attempt; others are left alone. A file of checksums
    is made again from its image. Raises `PermissionDenied` if this user may not write there.
    """
    manifest = read_manifest(findings.path)
    if isinstance(manifest, Fault):
        return []
    same = [copy for copy in copies if _is_same(copy, manifest)]
    mend = _Mending(findings.path, same, manifest["images"])
    try:
        return [fault.file for fault in findings.faults if mend(fault)]
    except PermissionError as error:
        text = f"this user may not write in {findings.path}; run it as the daemon's user"
        raise errors.PermissionDenied(text) from error


def _is_same(copy: Path, manifest: dict[str, Any]) -> bool:
    found = read_manifest(copy)
    return isinstance(found, dict) and found["attempt"] == manifest["attempt"]


class _Mending:
    """Makes good files of what is good in several copies."""

    def __init__(self, directory: Path, copies: Sequence[Path], images: dict[str, Any]) -> None:
        self._directory = directory
        self._copies = (directory, *copies)
        self._images = images

    def __call__(self, fault: Fault) -> bool:
        """Replace the file of *fault*; False if no copy has what is missing."""
        name = fault.file.removesuffix(SUMS)
        if (image := self._images.get(name)) is None:
            return False  # the manifest itself
        if fault.file != name:
            return self._replace(fault.file, lambda file: self._write_sums(file, name, image))
        known = [_sums_of(copy / name, image) for copy in self._copies]
        sums = next((one for one in known if one is not None), None)
        if sums is None:
            return False
        return self._replace(name, lambda file: self._write_image(file, name, sums, image))

    def _replace(self, name: str, write: Callable[[int], bool]) -> bool:
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
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
        return True

    def _write_sums(self, fd: int, name: str, image: dict[str, Any]) -> bool:
        for copy in self._copies:
            for data in (_read(copy / (name + SUMS)), _recomputed(copy / name)):
                if hashlib.sha256(data).hexdigest() == image["sums_sha256"]:
                    return os.pwrite(fd, data, 0) == len(data)
        return False

    def _write_image(self, fd: int, name: str, sums: list[int], image: dict[str, Any]) -> bool:
        for chunk, want in enumerate(sums):
            start = chunk * CHUNK_BYTES
            length = min(CHUNK_BYTES, image["size_bytes"] - start)
            for copy in self._copies:
                data = _read(copy / name, start, length)
                if len(data) == length and crc32c(data) == want:
                    break
            else:
                return False
            if os.pwrite(fd, data, start) != length:
                return False
        return True


def _sums_of(path: Path, image: dict[str, Any]) -> list[int] | None:
    try:
        return read_sums(path, image)
    except OSError:
        return None


def _recomputed(path: Path) -> bytes:
    """Return the file of checksums that *path* would have been saved with."""
    try:
        found, size = list(crcs(path)), path.stat().st_size
    except OSError:
        return b""
    record = {"format": 1, "size_bytes": size, "chunk_bytes": CHUNK_BYTES, "crc32c": found}
    return json.dumps(record).encode()


def _read(path: Path, start: int = 0, length: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError:
        return b""
