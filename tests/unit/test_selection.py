"""Which files patterns choose."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.fetch.selection import PATTERNS_MAX, Selection
from ckptd_proto import errors

PATHS = ["config.json", "model.safetensors", "sub/part.safetensors", "sub/deep/x.bin", "b/x.bin"]

paths = st.text("ab./-", min_size=1, max_size=12)
patterns = st.text("ab./*?[]!-", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ([], [], PATHS),
        (["*.safetensors"], [], PATHS[1:3]),
        (["*.safetensors"], ["sub/*"], PATHS[1:2]),
        ([], ["*"], []),
        (["sub/"], [], PATHS[2:4]),
        (["**/x.bin"], [], PATHS[3:]),
        (["**/config.json"], [], PATHS[:1]),
        (["sub/**/x.bin"], [], PATHS[3:4]),
        (["sub/**/part.safetensors"], [], PATHS[2:3]),
        (["config.json", "?/x.bin"], [], [PATHS[0], PATHS[4]]),
        (["CONFIG.JSON"], [], []),
        (["[cm]o*"], ["*.json"], PATHS[1:2]),
    ],
)
def test_patterns(include: list[str], exclude: list[str], chosen: list[str]) -> None:
    assert Selection.of(include, exclude).chosen(PATHS) == chosen


@given(st.lists(paths), patterns.filter(lambda text: "**/" not in text and not text.endswith("/")))
def test_a_plain_pattern_means_what_fnmatch_says(names: list[str], pattern: str) -> None:
    expected = [name for name in names if fnmatchcase(name, pattern)]
    assert Selection.of([pattern], []).chosen(names) == expected
    rest = [name for name in names if name not in expected]
    assert Selection.of([], [pattern]).chosen(names) == rest


@given(st.lists(paths), st.lists(patterns, max_size=3), st.lists(patterns, max_size=3))
def test_more_exclusion_never_chooses_more(
    names: list[str], include: list[str], exclude: list[str]
) -> None:
    try:
        wide, narrow = Selection.of(include, []), Selection.of(include, exclude)
    except errors.InvalidArgument:
        return
    assert set(narrow.chosen(names)) <= set(wide.chosen(names))


def test_the_order_of_patterns_does_not_matter() -> None:
    assert Selection.of(["b", "a", "a"], ["d", "c"]) == Selection.of(["a", "b"], ["c", "d"])


@pytest.mark.parametrize(
    "include",
    [[""], ["x" * 1000], ["**/a/**/b/**/c/**/d"], [str(n) for n in range(PATTERNS_MAX + 1)]],
)
def test_patterns_that_cannot_be_meant_are_refused(include: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        Selection.of(include, [])
