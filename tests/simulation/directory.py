"""A shared directory in memory: every operation is atomic, and watched; and what a node sees of it.

What is, is in `Directory`. A node has a `View` of it, which believes names for a while, as the
caches of network filesystems do: a name that was missing is missing, and one that led to a
directory leads there, wherever that is by now. Its own changes it knows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.operations import Renamed


@dataclass(eq=False)
class Dir:
    """What has a name may lose it; what is in it stays together."""

    entries: dict[str, Dir | bytes] = field(default_factory=dict)


class Directory:
    """The truth that all nodes share."""

    def __init__(self, on_named: Callable[[Path, Dir], None]) -> None:
        self.top = Dir()
        self.calls = 0
        self._on_named = on_named  # told of each directory that gets a name by a rename

    def perform(self, op: ops.Op) -> Any:
        self.calls += 1
        match op:
            case ops.Exists(path):
                return self.find(path) is not None
            case ops.Read(path):
                return found if isinstance(found := self.find(path), bytes) else None
            case ops.Make(path):
                self._make(path)
            case ops.Write(path, data):
                return self.put(path, data)
            case ops.Note(path, data):
                self._make(path.parent)
                return self.find(path) is None and self.put(path, data)
            case ops.Rename(src, dst):
                old, new = self.find(src.parent), self.find(dst.parent)
                if not isinstance(old, Dir) or not isinstance(new, Dir):
                    return Renamed.MISSING
                return self.rename(old, src.name, new, dst)
            case ops.Exchange(one, other):
                return self._exchange(one, other)
            case ops.Sweep(path):
                if isinstance(parent := self.find(path.parent), Dir):
                    parent.entries.pop(path.name, None)
            case ops.Refresh() | ops.Sync():
                pass
            case _:
                raise AssertionError(op)
        return None

    def find(self, path: Path) -> Dir | bytes | None:
        found: Dir | bytes | None = self.top
        for name in path.parts[1:]:
            found = found.entries.get(name) if isinstance(found, Dir) else None
        return found

    def put(self, path: Path, what: Dir | bytes) -> bool:
        parent = self.find(path.parent)
        if isinstance(parent, Dir):
            parent.entries[path.name] = what
        return isinstance(parent, Dir)

    def _make(self, path: Path) -> None:
        here = self.top
        for name in path.parts[1:]:
            inner = here.entries.setdefault(name, Dir())
            assert isinstance(inner, Dir)
            here = inner

    def rename(self, old: Dir, name: str, new: Dir, dst: Path) -> Renamed:
        """Give what is *name* in *old* its new name, which is *dst*'s, in *new*."""
        if not isinstance(found := old.entries.get(name), Dir):
            return Renamed.MISSING
        if isinstance(there := new.entries.get(dst.name), Dir) and there.entries:
            return Renamed.TAKEN
        del old.entries[name]
        new.entries[dst.name] = found
        self._on_named(dst, found)
        return Renamed.DONE

    def _exchange(self, one: Path, other: Path) -> Renamed:
        first, second = self.find(one), self.find(other)
        if not isinstance(first, Dir) or not isinstance(second, Dir):
            return Renamed.MISSING
        self.put(one, second)
        self.put(other, first)
        self._on_named(other, first)
        self._on_named(one, second)
        return Renamed.DONE


class View:
    """What the kernel of one node believes about the names in the directory; it outlives daemons."""

    def __init__(self, directory: Directory, clock: Callable[[], float], lag_s: float) -> None:
        self._directory = directory
        self._clock = clock
        self._lag_s = lag_s
        self._believed: dict[Dir, dict[str, tuple[Dir | None, float]]] = {}
        self._listed: dict[Dir, tuple[list[str], float]] = {}

    def perform(self, op: ops.Op) -> Any:
        """Do it as this node can: by names that it believes, and then knows."""
        match op:
            case ops.Exists(path):
                return self.find(path) is not None
            case ops.Read(path):
                return found if isinstance(found := self.find(path), bytes) else None
            case ops.Write(path, data):
                return self.put(path, data)
            case ops.Rename(src, dst):
                return self._rename(src, dst)
            case ops.Exchange(one, other) if self.find(one) is None or self.find(other) is None:
                return Renamed.MISSING
            case ops.Refresh(path):
                if isinstance(found := self.find(path), Dir):
                    self._believed.pop(found, None)
                return None
        done = self._directory.perform(op)
        for path in _touched(op):
            self._learn(path)
        return done

    def find(self, path: Path) -> Dir | bytes | None:
        """Return what has the name, as far as this node knows; whoever opens a file sees that."""
        found: Dir | bytes | None = self._directory.top
        for name in path.parts[1:]:
            found = self._entry(found, name) if isinstance(found, Dir) else None
        return found

    def names(self, path: Path) -> list[str]:
        """Return what is listed here: as it was when this node last asked, for as long as it lags."""
        found = self.find(path)
        if not isinstance(found, Dir):
            return []
        listed, until = self._listed.get(found, ([], 0.0))
        if self._clock() < until:
            return listed
        self._listed[found] = (list(found.entries), self._clock() + self._lag_s)
        return list(found.entries)

    def put(self, path: Path, what: Dir | bytes) -> bool:
        """Make it in the directory that has the name of its parent here."""
        parent = self.find(path.parent)
        if not isinstance(parent, Dir):
            return False
        parent.entries[path.name] = what
        self._forget(parent, path.name)
        return True

    def _rename(self, src: Path, dst: Path) -> Renamed:
        """By name, but in the directories that have their parents' names here."""
        old, new = self.find(src.parent), self.find(dst.parent)
        if self.find(src) is None or not isinstance(old, Dir) or not isinstance(new, Dir):
            return Renamed.MISSING  # nobody asks the server
        done = self._directory.rename(old, src.name, new, dst)
        self._forget(old, src.name)
        self._forget(new, dst.name)
        return done

    def _entry(self, parent: Dir, name: str) -> Dir | bytes | None:
        believed, until = self._believed.get(parent, {}).get(name, (None, 0.0))
        if self._clock() < until:
            return believed
        found = parent.entries.get(name)
        if not isinstance(found, bytes) and self._lag_s:
            entries = self._believed.setdefault(parent, {})
            entries[name] = (found, self._clock() + self._lag_s)
        return found

    def _learn(self, path: Path) -> None:
        """Take what the server has answered."""
        parent = self._directory.find(path.parent)
        if isinstance(parent, Dir):
            self._forget(parent, path.name)

    def _forget(self, parent: Dir, name: str) -> None:
        self._believed.get(parent, {}).pop(name, None)


def _touched(op: ops.Op) -> list[Path]:
    """Return the names about which the server says something when it does *op*."""
    match op:
        case ops.Make(path):
            return [path, *path.parents]
        case ops.Note(path, _) | ops.Sweep(path):
            return [path]
        case ops.Exchange(one, other):
            return [one, other]
        case _:
            return []
