"""References mean one thing, or are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.http import file_name
from ckptd_proto import errors
from ckptd_proto.refs import parse

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("ref", "path", "url", "sha256"),
    [
        ("/a/b", "/a/b", None, None),
        ("a/b", "a/b", None, None),
        (f"/a/b#sha256={HASH}", "/a/b", None, HASH),
        ("file:///a/b%20c", "/a/b c", None, None),
        ("file://localhost/a", "/a", None, None),
        ("HTTPS://Host/x", None, "https://Host/x", None),
        (f"http://h/x?q=1#sha256={HASH.upper()}", None, "http://h/x?q=1", HASH),
    ],
)
def test_what_a_reference_means(
    ref: str, path: str | None, url: str | None, sha256: str | None
) -> None:
    found = parse(ref)
    assert found.path == (None if path is None else Path(path))
    assert (found.url, found.sha256) == (url, sha256)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "#sha256=" + HASH,
        "gopher://x/y",
        "file://other/a",
        "http://",
        "http://[/x",
        "http://user:pass/word@host/x",
        "x#sha256=1",
    ],
)
def test_what_means_nothing_is_refused(ref: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        parse(ref)


def test_two_hashes_that_differ_are_refused() -> None:
    assert parse(f"/a#sha256={HASH}", HASH.upper()).sha256 == HASH
    with pytest.raises(errors.InvalidArgument):
        parse(f"/a#sha256={HASH}", "0" * 64)


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except errors.InvalidArgument:
        return
    assert (found.path is None) != (found.url is None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/model.bin", "model.bin"),
        ("a/m%20x", "m x"),
        ("", "content"),
        ("a/", "content"),
        ("..%2Fetc", "content"),
        ("%2e%2e", "content"),
        ("a%0Ab", "content"),
        ("x" * 300, "content"),
    ],
)
def test_a_file_name_is_always_a_safe_one(path: str, name: str) -> None:
    assert file_name(f"http://h/{path}") == name
