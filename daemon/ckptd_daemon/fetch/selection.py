"""Which files of a directory are meant: include and exclude patterns; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from itertools import product

from ckptd_proto import errors

PATTERNS_MAX = 64
PATTERN_MAX_CHARS = 512
ANY_DEPTH = "**/"
ANY_DEPTHS_MAX = 3


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything that some include pattern matches, or everything, but what is excluded.

    A pattern is matched against the whole relative path, as `fnmatch` does: `*` crosses `/`. `**/`
    also stands for no directory at all, and a `/` at the end for everything below.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: Iterable[str], exclude: Iterable[str]) -> Selection:
        """Return the selection by these patterns, in no order; raises `InvalidArgument`."""
        selection = cls(tuple(sorted(set(include))), tuple(sorted(set(exclude))))
        patterns = selection.include + selection.exclude
        if len(patterns) > PATTERNS_MAX:
            raise errors.InvalidArgument(f"at most {PATTERNS_MAX} patterns may be given")
        for pattern in patterns:
            if not pattern or len(pattern) > PATTERN_MAX_CHARS:
                text = f"a pattern has 1 to {PATTERN_MAX_CHARS} characters, and {pattern!r:.40} not"
                raise errors.InvalidArgument(text)
            if pattern.count(ANY_DEPTH) > ANY_DEPTHS_MAX:
                text = f"{pattern!r} has more than {ANY_DEPTHS_MAX} times `**/`; `*` crosses / too"
                raise errors.InvalidArgument(text)
        return selection

    @property
    def is_all(self) -> bool:
        """Whether it leaves nothing out."""
        return not self.include and not self.exclude

    def chosen(self, paths: Iterable[str]) -> list[str]:
        """Return those of *paths* that are meant, in their order."""
        included = _matcher(self.include) if self.include else None
        excluded = _matcher(self.exclude) if self.exclude else None
        return [
            path
            for path in paths
            if (included is None or included.fullmatch(path))
            and not (excluded is not None and excluded.fullmatch(path))
        ]


def _matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    variants = {variant for pattern in patterns for variant in _variants(pattern)}
    return re.compile("|".join(translate(variant) for variant in sorted(variants)))


def _variants(pattern: str) -> Iterable[str]:
    """Return what *pattern* means in terms of `fnmatch`, each `**/` being there or not."""
    if pattern.endswith("/"):
        pattern += "*"
    first, *rest = pattern.split(ANY_DEPTH)
    for depths in product(("", ANY_DEPTH), repeat=len(rest)):
        yield first + "".join(depth + part for depth, part in zip(depths, rest, strict=True))
