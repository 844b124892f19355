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
        (f"http://h/x#SHA256={HASH}", None, "http://h/x", HASH),
        ("http://h/x#readme", None, "http://h/x#readme", None),
        ("/runs/x#lr=0.1", "/runs/x#lr=0.1", None, None),
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


@pytest.mark.parametrize("end", ["sha265=", "sha-256=", "md5=", "a#sha1=", "SHA256 =", "a&sha256="])
def test_a_statement_that_nobody_would_check_is_refused_with_what_may_be_meant(end: str) -> None:
    for ref in (f"http://h/x#{end}{HASH}", f"file:///x#{end}{HASH}", f"http://h/x/#{end}{HASH}"):
        with pytest.raises(errors.InvalidArgument, match="did you mean #sha256="):
            parse(ref)


def test_a_path_may_have_any_name_but_one_that_is_missing_may_have_stated_a_hash() -> None:
    kinds = {end: missing(Path(f"x#{end}=1"), Path("/x")) for end in ("sha265", "md5", "lr")}
    assert isinstance(kinds["sha265"], errors.InvalidArgument)
    assert isinstance(kinds["md5"], errors.InvalidArgument)
    assert isinstance(kinds["lr"], errors.NotFound)


def test_a_refused_statement_is_not_repeated_where_it_may_be_a_secret() -> None:
    for secret in ("key=hunter2", "aHVudGVyMiBpcyBteSBwYXNz=="):
        with pytest.raises(errors.InvalidArgument) as refusal:
            parse(f"http://h/x#{secret}")
        assert "hunter2" not in str(refusal.value)
        assert "aHVud" not in str(refusal.value)


def test_a_hash_that_is_stated_twice_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="more than one"):
        parse(f"http://h/x#sha256={'0' * 64}#sha256={HASH}")


@pytest.mark.parametrize(
    ("named", "server"),
    [
        ("127.0.0.1:39471/x", "127.0.0.1:39471"),
        ("localhost:80", "localhost:80"),
        ("[::1]:8080/a/b", "[::1]:8080"),
        ("models", None),
        ("models/a:1/b", None),
        ("/a:1/b", None),
        ("model:best/weights", None),
        ("10:30am", None),
    ],
)
def test_what_looks_like_a_server_without_its_scheme_is_told_to_have_one(
    named: str, server: str | None
) -> None:
    said = str(missing(Path(named), Path("/here") / named))
    hint = f"if {server} is a server, put http:// or https:// in front"
    assert (hint in said) if server else ("in front" not in said)


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
