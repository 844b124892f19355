"""Directories as they were at one moment: trees of links to blobs, each beside a note.

A snapshot owns no bytes. Whoever leases it holds the blobs that it links to; when nobody does,
they may be evicted one by one, and what is left of the tree is swept away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptd_daemon.store import durable
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.store.blobs import BlobStore

logger = logging.getLogger(__name__)

FORMAT = 1
NOTE = "snapshot.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Some or all files of one directory."""

    object_id: str
    """Of the directory, as for single objects."""
    title: str
    name: str
    """What the tree is called; safe as a path component."""
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    files: Mapping[str, str]
    """The key of each file's blob, by relative path."""
    taken_at: float = field(default_factory=time.time, compare=False)

    @property
    def key(self) -> str:
        """What it is leased by: the same for the same files, asked for in the same way."""
        fields = [self.object_id, self.include, self.exclude, sorted(self.files.items())]
        return hashlib.sha256(f"snapshot {json.dumps(fields)}".encode()).hexdigest()[:40]


class SnapshotStore:
    """The snapshots below one directory."""

    def __init__(self, cache_dir: Path, blobs: BlobStore) -> None:
        self._directory = cache_dir / "snapshots"
        self._trash_dir = cache_dir / "trash"
        self._blobs = blobs
        self._snapshots: dict[str, Snapshot] = {}
        self._users: dict[str, set[str]] = {}  # snapshots by blob
        self._lock = threading.Lock()  # what is used is not swept: one of the two comes first

    def __len__(self) -> int:
        return len(self._snapshots)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(list(self._snapshots.values()))

    def __repr__(self) -> str:
        return f"<SnapshotStore {self._directory} [{len(self)} snapshots]>"

    def having(self, blob_key: str) -> frozenset[str]:
        """Return the keys of the snapshots that the blob is part of."""
        return frozenset(self._users.get(blob_key, ()))

    def path(self, snapshot: Snapshot) -> Path:
        """Return where its tree is, or would be."""
        return self._directory / snapshot.key / snapshot.name

    def of(self, object_id: str) -> list[Snapshot]:
        """Return the snapshots of one directory, the newest first."""
        found = [snapshot for snapshot in self if snapshot.object_id == object_id]
        return sorted(found, key=lambda snapshot: snapshot.taken_at, reverse=True)

    def load(self) -> None:
        """Take stock after a start, when the blobs are known; blocks, like all that follows."""
        durable.make_dirs(self._directory)
        for path in list(self._directory.iterdir()):
            snapshot = None if path.name.endswith(".tmp") else _read_note(path)
            if snapshot is None or snapshot.key != path.name or not self._is_whole(snapshot):
                logger.info("snapshot %s is swept away: a crash or eviction left it", path.name)
                self._remove(path)
            else:
                self._add(snapshot)

    def publish(self, snapshot: Snapshot) -> None:
        """Make the tree, unless it is there; whole and durable when this returns."""
        with self._lock:
            if not (snapshot.key in self._snapshots and self._is_whole(snapshot)):
                self._make(snapshot)
            self._add(snapshot)

    def _make(self, snapshot: Snapshot) -> None:
        home = self._directory / snapshot.key
        building = self._directory / f".{snapshot.key}.{secrets.token_hex(4)}.tmp"
        try:
            with durable.explained(building):
                building.mkdir(mode=0o700)
                self._build(snapshot, building)
            self._remove(home)
            durable.publish(building, home)
        except BaseException:
            self._remove(building)
            raise

    def use(self, snapshot: Snapshot, *, for_others: bool = False) -> os.stat_result | None:
        """Note that all of it is used now; None if some of it is gone meanwhile."""
        with self._lock:
            if not self._is_whole(snapshot):
                return None
            if for_others:
                (self._directory / snapshot.key).chmod(0o711)
            found = self.path(snapshot).stat()
        for key in set(snapshot.files.values()):
            if (blob := self._blobs.find(key)) is not None:
                self._blobs.touch(blob, for_others=for_others)
        return found

    def sweep(self, is_held: Callable[[str], bool]) -> None:
        """Drop the snapshots that have lost a blob and that nobody holds."""
        for snapshot in self:
            with self._lock:
                is_complete = all(self._blobs.find(key) for key in snapshot.files.values())
                if not is_complete and not is_held(snapshot.key):
                    self._forget(snapshot)
                    self._remove(self._directory / snapshot.key)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        tree = self.path(snapshot)
        try:
            for path, key in snapshot.files.items():
                blob = self._blobs.find(key)
                if blob is None or (tree / path).stat().st_size != blob.size_bytes:
                    return False
        except OSError:  # a link that is missing, or leads nowhere
            return False
        return True

    def _build(self, snapshot: Snapshot, building: Path) -> None:
        tree = building / snapshot.name
        directories = {tree: None}
        for path, key in snapshot.files.items():
            link = tree / path
            link.parent.mkdir(parents=True, exist_ok=True)
            directories |= dict.fromkeys(_up_to(link.parent, tree))
            blob = self._blobs.find(key)
            assert blob is not None, "held while the snapshot is made"
            link.symlink_to(_target(blob, self._directory / snapshot.key / snapshot.name / path))
        note = {
            "format": FORMAT,
            "object": snapshot.object_id,
            "title": snapshot.title,
            "name": snapshot.name,
            "include": snapshot.include,
            "exclude": snapshot.exclude,
            "files": dict(snapshot.files),
            "taken_at": snapshot.taken_at,
        }
        durable.write_new(building / NOTE, json.dumps(note).encode(), mode=0o600)
        for directory in directories:
            directory.chmod(0o555)
            durable.sync_dir(directory)
        durable.sync_dir(building)

    def _add(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.key] = snapshot
        for key in snapshot.files.values():
            self._users.setdefault(key, set()).add(snapshot.key)

    def _forget(self, snapshot: Snapshot) -> None:
        del self._snapshots[snapshot.key]
        for key in set(snapshot.files.values()):
            self._users[key].discard(snapshot.key)
            if not self._users[key]:
                del self._users[key]

    def _remove(self, path: Path) -> None:
        """Drop a snapshot's directory; its trees are read-only even for their owner."""
        if not path.exists():
            return
        for directory, _, _ in os.walk(path):
            Path(directory).chmod(0o700)
        grave = self._trash_dir / f"{path.name}-{secrets.token_hex(4)}"
        durable.publish(path, grave)
        shutil.rmtree(grave)


def _up_to(directory: Path, top: Path) -> Iterator[Path]:
    while directory != top:
        yield directory
        directory = directory.parent


def _target(blob: Blob, link: Path) -> str:
    """Return the way from where *link* will be to the blob's file, whatever the cache is below."""
    return os.path.relpath(blob.path, link.parent)


def _read_note(path: Path) -> Snapshot | None:
    """Return what the note in *path* says; None if it is damaged, or of another format.

    A snapshot that is lost costs only its making: the blobs stay.
    """
    try:
        note: dict[str, Any] = json.loads((path / NOTE).read_bytes())
        if note["format"] != FORMAT:
            return None
        return Snapshot(
            object_id=note["object"],
            title=note["title"],
            name=note["name"],
            include=tuple(note["include"]),
            exclude=tuple(note["exclude"]),
            files=dict(note["files"]),
            taken_at=note["taken_at"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
