"""What an origin may say of a directory, and what of it is believed."""

from __future__ import annotations

import html
import json
import posixpath
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import quote

import anyio
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources import indexes, manifest
from ckptd_daemon.sources.indexes import Named
from ckptd_daemon.sources.listing import FILES_MAX, Entry, checked, child, wrong_path
from ckptd_proto import errors

URL = "http://host/dir/"
TITLE = "http://host/dir/"


def _in_a_page(link: str) -> bytes:
    text = f'<title>Index of /dir/</title><a href="{html.escape(link)}">x</a>'
    return text.encode(errors="replace")


names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1)
safe_names = names.filter(lambda name: not wrong_path(name))
directories = st.dictionaries(safe_names, st.booleans(), max_size=8)


def nginx(listing: dict[str, bool]) -> bytes:
    links = (
        f'<a href="{quote(name)}{"/" if is_dir else ""}">{html.escape(name)[:50]}</a>   -'
        for name, is_dir in listing.items()
    )
    text = "<html><head><title>Index of /dir/</title></head><h1>Index of /dir/</h1><pre>"
    return (text + '<a href="../">../</a>' + "\n".join(links)).encode()


def python(listing: dict[str, bool]) -> bytes:
    links = (
        f'<li><a href="{quote(name)}{"/" if is_dir else ""}">{html.escape(name)}</a></li>'
        for name, is_dir in listing.items()
    )
    return ("<title>Directory listing for /dir/</title><ul>" + "".join(links)).encode()


def apache(listing: dict[str, bool]) -> bytes:
    links = "".join(
        f'<tr><td><a href="{quote(name)}{"/" if is_dir else ""}">{html.escape(name)}</a>'
        for name, is_dir in listing.items()
    )
    text = '<title>Index of /dir</title><a href="?C=N;O=D">Name</a><a href="/">Parent Directory</a>'
    return (text + links).encode()


def as_json(listing: dict[str, bool]) -> bytes:
    return json.dumps(
        [
            {"name": name, "type": "directory" if is_dir else "file"}
            for name, is_dir in listing.items()
        ]
    ).encode()


@pytest.mark.parametrize("page", [nginx, python, apache, as_json])
@given(listing=directories)
def test_every_index_page_names_what_its_directory_holds(
    page: Callable[[dict[str, bool]], bytes], listing: dict[str, bool]
) -> None:
    found = indexes.parse(page(listing), URL, TITLE)
    assert {named.name: named.is_directory for named in found} == listing


@given(st.one_of(st.binary(), st.text().map(str.encode), st.text().map(_in_a_page)))
def test_whatever_a_page_says_only_plain_names_come_out(body: bytes) -> None:
    try:
        found = indexes.parse(body, URL, TITLE)
    except errors.FailedPrecondition:
        return
    assert not [named for named in found if wrong_path(named.name) or "/" in named.name]


@pytest.mark.parametrize(
    "link", ["%2e%2e/", "%2e%2e%2fup", "a%2fb", "a/b", "%00", "%0a", "x" * 300, "%ff", "."]
)
def test_a_link_below_the_page_with_a_name_that_is_none_is_refused(link: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match="is not used"):
        indexes.parse(_in_a_page(link if link != "." else "%2e"), URL, TITLE)


@pytest.mark.parametrize(
    "link", ["../", "/", "/other/file", "http://elsewhere/dir/a", "?C=M;O=A", "#top", "", "a?b=1"]
)
def test_links_that_lead_elsewhere_are_no_content(link: str) -> None:
    assert indexes.parse(_in_a_page(link), URL, TITLE) == []


def test_sizes_of_a_json_index_come_along_and_odd_things_stay_out() -> None:
    items = [
        {"name": "a", "type": "file", "size": 3},
        {"name": "d", "type": "directory"},
        {"name": "pipe", "type": "other"},
    ]
    found = indexes.parse(json.dumps(items).encode(), URL, TITLE)
    assert found == [Named("a", False, 3), Named("d", True)]


@pytest.mark.parametrize(
    "part",
    [
        *["<a", "<a ", "<a href=", "<a href='", '<a href="', "<a b", "<a =", "<a href=x ", "</a"],
        *["<!--", "<!-- -->", "<script>", "<title", "<h1>"],
        *["=", "a='", '="', "<", "/", "&", '<a href="&#'],
    ],
)
async def test_a_page_made_to_take_long_takes_as_long_as_any_other(part: str) -> None:
    page = "<title>Index of /</title>" + part * (2_000_000 // len(part))
    with anyio.fail_after(20), suppress(errors.FailedPrecondition):
        assert await parsed(page) == []


async def parsed(page: str) -> list[Named]:
    """In a thread that can be given up."""
    work = partial(indexes.parse, page.encode(), URL, TITLE)
    return await to_thread.run_sync(work, abandon_on_cancel=True)


@pytest.mark.parametrize("text", ['<a href="{}">x</a>', '{{"name": "{}", "type": "file"}},'])
async def test_a_page_with_a_million_names_is_refused(text: str) -> None:
    names = "".join(map(text.format, range(1_000_000)))
    page = f"[{names[:-1]}]" if text.startswith("{") else f"<title>Index of /</title>{names}"
    with anyio.fail_after(20), pytest.raises(errors.FailedPrecondition, match="10000 files"):
        await parsed(page)


@pytest.mark.parametrize("link", ["x" * 5000, "&#" + "9" * 5000 + ";"])
def test_an_endless_link_is_refused(link: str) -> None:
    page = f'<title>Index of /</title><a href="{link}">x</a>'
    with pytest.raises(errors.FailedPrecondition, match="4096 characters"):
        indexes.parse(page.encode(), URL, TITLE)


def test_what_a_page_comments_out_or_scripts_is_no_content() -> None:
    page = """<TITLE>Index of /dir/</TITLE><!-- <a href="a">a</a> --><SCRIPT>'<a href="b">'</Script>
    <A class='x > y' HREF = 'c' >c</A><a title="href=d" href=e>e</a><a href="f&amp;g">f</a><!-- <a
    href="h">"""
    found = indexes.parse(page.encode(), URL, TITLE)
    assert [named.name for named in found] == ["c", "e", "f&g"]


@pytest.mark.parametrize("size", ["9" * 30, "9" * 5000, 1 << 63])
def test_a_size_that_no_file_has_is_refused(size: str | int) -> None:
    page = f'[{{"name": "a", "type": "file", "size": {size}}}]'
    with pytest.raises(errors.FailedPrecondition):
        indexes.parse(page.encode(), URL, TITLE)
    files = f'{{"format": 1, "files": [{{"path": "a", "size_bytes": {size}}}]}}'
    with pytest.raises(errors.FailedPrecondition):
        manifest.parse(files.encode(), TITLE)


def test_files_that_are_more_than_any_disk_together_are_refused() -> None:
    entries = [Entry(name, 1 << 62) for name in "ab"]
    assert checked(TITLE, entries[:1])
    with pytest.raises(errors.FailedPrecondition, match="more bytes than any disk"):
        checked(TITLE, entries)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
keys = st.sampled_from(["path", "size_bytes", "sha256", "crc32c", "format", "files"])
near_manifests = st.builds(
    lambda files, more: {"format": 1, "files": files} | more,
    st.lists(st.dictionaries(keys, json_values) | json_values, max_size=3),
    st.dictionaries(keys, json_values, max_size=1),
)


@given(st.one_of(st.binary(), (json_values | near_manifests).map(lambda v: json.dumps(v).encode())))
def test_a_manifest_is_either_sound_or_refused(data: bytes) -> None:
    try:
        entries = manifest.parse(data, TITLE)
    except errors.FailedPrecondition:
        return
    assert not [entry for entry in entries if wrong_path(entry.path)]
    assert all(entry.size_bytes is None or entry.size_bytes >= 0 for entry in entries)


def test_a_manifest_states_sizes_and_checksums() -> None:
    sha256 = "AB" * 32
    files = [
        {"path": "b/c", "size_bytes": (16 << 20) + 1, "crc32c": [1, 2], "later": "whatever"},
        {"path": "a", "size_bytes": 0, "sha256": sha256},
    ]
    found = manifest.parse(json.dumps({"format": 1, "files": files}).encode(), TITLE)
    assert found == (Entry("a", 0, sha256.lower()), Entry("b/c", (16 << 20) + 1, None, (1, 2)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "no JSON"),
        ("[1]", "no object"),
        ('{"format": 2, "files": []}', "upgrade ckptd"),
        ('{"format": 1}', "no list"),
        ('{"format": 1, "files": [{"path": "../x"}]}', "no plain relative path"),
        ('{"format": 1, "files": [{"path": "/x"}]}', "no plain relative path"),
        ('{"format": 1, "files": [{"path": "a"}, {"path": "a/b"}]}', "both a file and a directory"),
        ('{"format": 1, "files": [{"path": "a", "size_bytes": 1}, {"path": "a"}]}', "twice"),
        ('{"format": 1, "files": [{"path": "a", "size_bytes": -1}]}', "size_bytes"),
        ('{"format": 1, "files": [{"path": "a", "size_bytes": true}]}', "size_bytes"),
        ('{"format": 1, "files": [{"path": "a", "sha256": "12"}]}', "sha256"),
        ('{"format": 1, "files": [{"path": "a", "crc32c": [1]}]}', "crc32c"),
        ('{"format": 1, "files": [{"path": "a", "size_bytes": 5, "crc32c": [1, 2]}]}', "16 MiB"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match=words):
        manifest.parse(text.encode(), TITLE)


def test_too_many_files_are_refused() -> None:
    with pytest.raises(errors.FailedPrecondition, match="more than"):
        checked(TITLE, (Entry(f"f{number}") for number in range(FILES_MAX + 1)))


def test_a_file_is_asked_for_with_the_right_of_its_directory() -> None:
    directory = "https://user:pw@host/some%20dir/?token=x"
    assert (
        child(directory, "a b/ü#?") == "https://user:pw@host/some%20dir/a%20b/%C3%BC%23%3F?token=x"
    )


@given(st.text())
def test_a_path_that_is_not_refused_stays_below(path: str) -> None:
    if not wrong_path(path):
        assert posixpath.normpath(posixpath.join("/root", path)) == f"/root/{path}"
