"""A shared directory in memory: every operation is atomic, and watched."""

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
                return self._rename(src, dst)
            case ops.Exchange(one, other):
                return self._exchange(one, other)
            case ops.Sweep(path):
                if isinstance(parent := self.find(path.parent), Dir):
                    parent.entries.pop(path.name, None)
            case ops.Refresh():
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

    def _rename(self, src: Path, dst: Path) -> Renamed:
        found, parent = self.find(src), self.find(dst.parent)
        if found is None or not isinstance(parent, Dir):
            return Renamed.MISSING
        if isinstance(there := parent.entries.get(dst.name), Dir) and there.entries:
            return Renamed.TAKEN
        self.perform(ops.Sweep(src))
        parent.entries[dst.name] = found
        assert isinstance(found, Dir)
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
