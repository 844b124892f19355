"""References mean one thing, or are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.http import file_name
from ckptd_proto import errors
from ckptd_proto.refs import missing, parse

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


@pytest.mark.parametrize("scheme", ["abfs", "az", "ckpt", "GS", "hf", "s3"])
def test_what_is_not_in_this_version_says_so_and_what_is(scheme: str) -> None:
    with pytest.raises(errors.Unimplemented, match=r"not in this version.*local paths.*https://"):
        parse(f"{scheme}://bucket/key?secret=1")


@pytest.mark.parametrize("name", ["zoo:resnet", "aml:run:dir/file"])
def test_a_name_of_a_later_version_is_a_path_first(name: str) -> None:
    path = parse(name).path
    assert path == Path(name)
    error = missing(path, Path("/tried") / path)
    assert isinstance(error, errors.Unimplemented)
    assert "not in this version" in str(error)


def test_a_missing_path_is_told_with_what_was_tried() -> None:
    error = missing(Path("model"), Path("/here/model"))
    assert isinstance(error, errors.NotFound)
    assert "/here/model" in str(error)
    assert "https://" in str(error)


def test_two_hashes_that_differ_are_refused() -> None:
    assert parse(f"/a#sha256={HASH}", HASH.upper()).sha256 == HASH
    with pytest.raises(errors.InvalidArgument):
        parse(f"/a#sha256={HASH}", "0" * 64)


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except (errors.InvalidArgument, errors.Unimplemented):
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
