"""The shape of a state: its containers and the names of its leaves, as stock torch names them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

PathItem = str | int | tuple[int]
"""A key of a dict, a position in a list, or, in a tuple, an int that is a key of a dict."""
Path = tuple[PathItem, ...]

LEAF = "leaf"
LIST = "list"
_MAPPINGS: dict[str, Callable[[], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
}


def name_of(path: Path) -> str:
    """Return the flat name of *path*, as torch's planners make it."""
    return ".".join(str(item[0] if isinstance(item, tuple) else item) for item in path)


def mapping_kind(value: Mapping[Any, Any]) -> str | None:
    """Return how the kind of *value* is written down; None for one we could not give back."""
    kind = type(value).__name__
    return kind if type(value) is type(_MAPPINGS.get(kind, object)()) else None


@dataclass(frozen=True, slots=True)
class Node:
    """One container or leaf."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        """Its flat name."""
        return name_of(self.path)

    def to_json(self) -> list[Any]:
        """Return it as JSON holds it: an int key is a list of one."""
        return [list(self.path), self.kind]

    @classmethod
    def from_json(cls, raw: list[Any]) -> Self:
        """Return the node that `to_json` made *raw* from."""
        path, kind = raw
        return cls(tuple((item[0],) if isinstance(item, list) else item for item in path), kind)


class Tree:
    """The containers and leaves of a checkpoint, by path."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._children: dict[Path, list[Node]] = {}
        self._by_path: dict[Path, Node] = {}
        for node in nodes:
            self._by_path[node.path] = node
            if node.path:
                self._children.setdefault(node.path[:-1], []).append(node)

    def kind(self, path: Path) -> str | None:
        """Return what is at *path*; None if nothing is."""
        node = self._by_path.get(path)
        return node.kind if node else None

    def children(self, path: Path) -> list[Node]:
        """Return what is directly below *path*, in order."""
        return self._children.get(path, [])

    def leaves(self, path: Path) -> list[Node]:
        """Return every leaf at or below *path*, in order."""
        if self.kind(path) == LEAF:
            return [self._by_path[path]]
        return [leaf for child in self.children(path) for leaf in self.leaves(child.path)]

    def build(self, path: Path, leaf: Callable[[Node], Any]) -> Any:
        """Return the value at *path*, asking *leaf* for the value of each leaf."""
        kind = self._by_path[path].kind
        if kind == LEAF:
            return leaf(self._by_path[path])
        if kind == LIST:
            return [self.build(child.path, leaf) for child in self.children(path)]
        value = _MAPPINGS[kind]()
        for child in self.children(path):
            item = child.path[-1]
            value[item[0] if isinstance(item, tuple) else item] = self.build(child.path, leaf)
        return value
