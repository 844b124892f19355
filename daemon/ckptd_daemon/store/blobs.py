"""Published files: whole, verified, read-only, each beside a note that says what it is.

A partial's directory becomes the blob's directory. The note `blob.json` is written when the
bytes are verified and durable; from then on start-up finishes what a crash interrupted.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptd_daemon.store import durable, notes, sums
from ckptd_daemon.store.blob import (
    FORMAT,
    NOTE,
    Blob,
    Verification,
    blob_of,
    fields_of,
    is_whole,
    read_note,
    remains_of,
)
from ckptd_daemon.store.partials import DATA, JOURNAL, Partial, claimed
from ckptd_proto import errors

logger = logging.getLogger(__name__)

NOTED_S = 10.0
"""What is used again so soon is not noted again: after a restart, the order of use is as exact."""


class BlobStore:
    """The published blobs and the partials below one directory."""

    def __init__(self, cache_dir: Path) -> None:
        self.partials_dir = cache_dir / "partials"
        self._partials = durable.SharedDir(self.partials_dir)
        self._blobs_dir = cache_dir / "blobs"
        self._quarantine_dir = cache_dir / "quarantine"
        self._trash_dir = cache_dir / "trash"
        self._blobs: dict[str, Blob] = {}
        self._objects: set[str] = set()  # of which there is, or was, some version
        self._changing = threading.Lock()  # threads say more of a blob, and no forgotten one
        self._noting = threading.Lock()  # a note is read and written by one at a time

    def __repr__(self) -> str:
        return f"<BlobStore {self._blobs_dir} [{len(self._blobs)} blobs]>"

    def __iter__(self) -> Iterator[Blob]:
        return iter(list(self._blobs.values()))

    def __len__(self) -> int:
        return len(self._blobs)

    def find(self, key: str) -> Blob | None:
        """Return the blob called *key*."""
        return self._blobs.get(key)

    def with_sha256(self, sha256: str) -> Blob | None:
        """Return a blob whose bytes are known to hash to *sha256*."""
        return next((blob for blob in self._blobs.values() if blob.sha256 == sha256), None)

    def newest_of(self, object_id: str) -> Blob | None:
        """Return the version of the object that was fetched last."""
        versions = (blob for blob in self._blobs.values() if blob.object_id == object_id)
        return max(versions, key=lambda blob: blob.published_at, default=None)

    def has_met(self, object_id: str) -> bool:
        """Tell whether there is some version of the object, or was since the start."""
        return object_id in self._objects

    def partial_path(self, key: str) -> Path:
        """Return where the partial of *key* is, or would be."""
        return self.partials_dir / key

    def forget(self, key: str) -> None:
        """Serve the blob called *key* no more, from this instant; `remove` then frees its disk."""
        with self._changing:
            self._blobs.pop(key, None)

    def partial_paths(self) -> list[Path]:
        """Return the directories of all partials; blocks on the disk, like all that follows."""
        return list(self.partials_dir.iterdir())

    def quarantined(self) -> list[Path]:
        """Return the directories that were set aside."""
        return list(self._quarantine_dir.iterdir())

    def load(self) -> None:
        """Take stock after a start: finish what was published, drop what cannot be resumed."""
        for path in (self.partials_dir, self._blobs_dir, self._quarantine_dir, self._trash_dir):
            durable.make_dirs(path)
        shutil.rmtree(self._trash_dir, ignore_errors=True)
        self._trash_dir.mkdir(exist_ok=True)
        for path in self.partials_dir.iterdir():
            if (path / NOTE).exists():
                self._finish_load(path)
            else:
                _drop_unless_resumable(path)
        for path in self._blobs_dir.glob("*/*"):
            self._load_blob(path)

    def _finish_load(self, path: Path) -> None:
        """Finish what a crash interrupted; what has a damaged note is fetched again."""
        try:
            name = fields_of(path)["name"]
            _sweep(path)
            self._finish(path, name)
        except errors.CkptdError as error:
            logger.error("blob %s is left unpublished: %s", path.name, error)
        except (ValueError, KeyError, TypeError):
            logger.error("blob %s is dropped: its note is damaged", path.name)
            shutil.rmtree(path)

    def _load_blob(self, path: Path) -> None:
        """Take one blob in; one strange directory must not take the cache down."""
        try:
            blob = read_note(path)
        except errors.FailedPrecondition as error:
            logger.error("blob %s is left alone: %s", path.name, error)
            return
        if blob is None or not is_whole(blob):
            self._quarantine(path)
        else:
            _sweep(path)
            self._blobs[blob.key] = blob
            self._objects.add(blob.object_id)

    def publish(
        self, partial: Partial, size_bytes: int, sha256: str | None, verification: Verification
    ) -> Blob:
        """Make a filled and verified partial a blob; durable when this returns."""
        header = partial.header
        partial.seal(size_bytes)
        partial.close()
        now = time.time()
        with self._changing:  # gives way; nobody may find half of it
            earlier = self._blobs.pop(partial.path.name, None)
        note = {
            "format": FORMAT,
            "object": header.object_id,
            "title": header.title,
            "version": header.version,
            "name": header.name,
            "size_bytes": size_bytes,
            "sha256": sha256,
            "verification": verification,
            "chunk_bytes": header.chunk_bytes,
            "crc32c": [crc for _, crc in sorted(partial.landed.items())],
            "published_at": now,
            "is_second": earlier is not None,
        }
        # `_finish` syncs the names; if a power cut takes that of the note and leaves that of the
        # data, the object is fetched again
        text = notes.encode(note)
        durable.write_file(partial.path / NOTE, text, mode=0o600, names_later=True)
        home = self._finish(partial.path, header.name)
        blob = self._blobs[home.name] = blob_of(home, note, used_at=now, noted_at=now)
        self._objects.add(blob.object_id)
        return blob

    def _finish(self, path: Path, name: str) -> Path:
        """Move a directory that holds a note among the blobs, and return where it is now.

        Goes on where a crash stopped it. It is durable before the move, which needs no sync
        therefore: a power cut leaves it at one of the two places, and a start knows both.
        """
        if (path / DATA).exists():
            durable.rename(path / DATA, path / name)
        with suppress(FileNotFoundError):
            (path / JOURNAL).unlink()
            _sweep(path)  # what an earlier life left; without a journal there was none
        durable.sync_dir(path)
        self._partials.sync()
        home = self._blobs_dir / path.name[:2] / path.name
        with durable.explained(home):
            home.parent.mkdir(exist_ok=True)
        if home.exists():  # something that could not be read at the start
            self._quarantine(home)
        durable.rename(path, home)
        return home

    def check(self, blob: Blob) -> bool:
        """Tell whether the blob's file is still what was published; quarantines it if not."""
        if is_whole(blob):
            return True
        with self._changing:
            is_known = self._blobs.get(blob.key) is blob
            if is_known:
                del self._blobs[blob.key]
        if is_known:
            self._quarantine(blob.path.parent)
        return False

    def _quarantine(self, path: Path) -> None:
        logger.error("blob %s is damaged: its file is not what was published", path.name)
        self.set_aside(path)

    def set_aside(self, path: Path) -> Path | None:
        """Keep a directory that cannot be used, out of the way of what takes its name.

        Returns where it is now; None if it is gone already.
        """
        if not path.exists():
            return None
        aside = self._quarantine_dir / f"{path.name}-{secrets.token_hex(4)}"
        durable.publish(path, aside)
        return aside

    def remains(self, key: str) -> list[Blob]:
        """Return what is left of the damaged blobs that were called *key*."""
        paths = (path for path in self.quarantined() if path.name.partition("-")[0] == key)
        notes = (remains_of(path) for path in paths)
        return [blob for blob in notes if blob is not None]

    def glance(self, blob: Blob, *, for_others: bool = False) -> os.stat_result | None:
        """Do as `use` does, at once; None if it was not used lately, or something is amiss.

        What was used moments ago the kernel has in memory, so that this does not wait for the disk.
        """
        now = time.time()
        if for_others or not 0 <= now - blob.noted_at < NOTED_S:
            return None
        try:
            found = blob.path.stat()
        except OSError:
            return None
        known = self._blobs.get(blob.key)
        if known is None or found.st_size != known.size_bytes:
            return None
        return found if self._change(blob.key, used_at=now) else None

    def use(self, blob: Blob, *, for_others: bool = False) -> os.stat_result | None:
        """Check the blob, and then touch it; None if it cannot be used."""
        return self.touch(blob, for_others=for_others) if self.check(blob) else None

    def touch(self, blob: Blob, *, for_others: bool = False) -> os.stat_result | None:
        """Note that the blob is used now, for eviction; returns what its file is.

        Until the first other user gets it, the directory is its owner's alone. None if the blob
        has been set aside, or dropped, meanwhile.
        """
        try:
            if for_others:
                blob.path.parent.chmod(0o711)
            os.utime(blob.path.parent / NOTE)
            found = blob.path.stat()
        except FileNotFoundError:
            return None
        now = time.time()
        return found if self._change(blob.key, used_at=now, noted_at=now) else None

    def learn_sha256(self, blob: Blob, stated: str) -> Blob | None:
        """Compute the SHA-256 of the blob, and write it down; *stated* may vouch for the bytes.

        None if it is gone meanwhile, or damaged: it is then set aside, and nobody else to blame.
        """
        try:
            with blob.path.open("rb", buffering=0) as file:
                sha256, crcs = sums.read(file, blob.chunk_bytes)
                if not os.path.samestat(os.fstat(file.fileno()), blob.path.stat()):
                    return None  # another has its name
        except FileNotFoundError:
            return None
        if crcs != blob.crc32c:
            self.forget(blob.key)
            self._quarantine(blob.path.parent)
            return None
        verification = Verification.SHA256 if sha256 == stated else blob.verification
        return self._noted(blob, sha256=sha256, verification=verification)

    def note_sha256(self, blob: Blob, sha256: str) -> None:
        """Write down the SHA-256 that was computed of the blob; that is no use of it."""
        if (known := self._noted(blob, sha256=sha256)) is not None:
            with suppress(FileNotFoundError):
                os.utime(known.path.parent / NOTE, (known.used_at, known.used_at))

    def settle_for(self, blob: Blob) -> None:
        """Write down that the blob is not to be fetched again for what somebody states."""
        self._noted(blob, is_second=True)

    def _noted(self, blob: Blob, **learned: str | bool) -> Blob | None:
        """Write down what was *learned* of *blob*; None if it was forgotten meanwhile.

        One whose note was damaged meanwhile is set aside.
        """
        home = blob.path.parent
        with self._noting:
            try:
                note = fields_of(home) | learned
            except FileNotFoundError:
                return None
            except ValueError:
                self.forget(blob.key)
                self._quarantine(home)
                return None
            durable.write_file(home / NOTE, notes.encode(note), mode=0o600)
        return self._change(blob.key, **learned)

    def _change(self, key: str, **learned: Any) -> Blob | None:
        """Say more of the blob called *key*, unless it was forgotten meanwhile."""
        with self._changing:
            if (known := self._blobs.get(key)) is not None:
                known = self._blobs[key] = replace(known, **learned)
            return known

    def remove(self, path: Path) -> None:
        """Drop a blob's or partial's directory. Readers that hold its file open keep the bytes."""
        if path.exists():
            grave = self._trash_dir / f"{path.name}-{secrets.token_hex(4)}"
            durable.publish(path, grave)
            shutil.rmtree(grave)


def _sweep(path: Path) -> None:
    """Drop notes that a crash kept from being finished."""
    for leftover in path.glob(f".{NOTE}.*.tmp"):
        leftover.unlink()


def _drop_unless_resumable(path: Path) -> None:
    try:
        earlier = claimed(path)
    except errors.FailedPrecondition as error:
        logger.error("partial %s is left alone: %s", path.name, error)
        return
    if earlier is None or not earlier.header.is_resumable:
        shutil.rmtree(path)
