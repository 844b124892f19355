"""Bytes of two versions are never mixed, whatever the origin names its versions by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.node import FETCH_S, clean
from fakes.origin import OLD, Fault, File, Origin, just_now
from fakes.waiting import until

YEAR_2000 = "Sat, 01 Jan 2000 00:00:00 GMT"


class Names:
    """What two versions are told apart by."""

    STRONG = ('"v1"', OLD), ('"v2"', OLD)
    ETAG_ALONE = ('"v1"', None), ('"v2"', None)
    WEAK = ('W/"v1"', None), ('W/"v2"', None)
    WEAK_AND_DATE = ('W/"v1"', OLD), ('W/"v2"', YEAR_2000)
    DATE = (None, OLD), (None, YEAR_2000)


NAMED = [
    pytest.param(pair, id=name.lower())
    for name, pair in vars(Names).items()
    if not name.startswith("_")
]
NAMELESS = [
    pytest.param(lambda: 'W/"same"', lambda: None, id="weak"),
    pytest.param(lambda: None, just_now, id="just_modified"),
    pytest.param(lambda: None, lambda: None, id="none"),
    pytest.param(lambda: None, lambda: "yesterday", id="no_date"),
]

Pair = tuple[tuple[str | None, str | None], tuple[str | None, str | None]]


@pytest.mark.parametrize("ignores_match", [False, True], ids=["honours_if_match", "cdn"])
@pytest.mark.parametrize("pair", NAMED)
async def test_a_change_midway_is_noticed_and_the_new_version_fetched(
    pair: Pair,
    ignores_match: bool,
    short_path: Path,
    origin: Origin,
    data: bytes,
    other_data: bytes,
) -> None:
    (etag, modified), (new_etag, new_modified) = pair
    file = origin.put("m", data, etag=etag, last_modified=modified, ignores_match=ignores_match)
    file.next_version = File(other_data, new_etag, new_modified, ignores_match=ignores_match)
    file.faults = [Fault.TRUNCATE, Fault.CHANGE]
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("m"))).read_bytes() == other_data
        assert node.entries("partials") == []


@pytest.mark.parametrize("size", [1000, 40 << 20], ids=["small", "streams"])
async def test_that_it_is_fetched_afresh_is_told_while_it_is_and_logged_once(
    size: int,
    short_path: Path,
    origin: Origin,
    data: bytes,
    other_data: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = origin.put("m", data[:size])
    new = file.next_version = File(other_data, '"v2"', bytes_per_s=20e6)
    file.faults = [Fault.CHANGE]
    async with clean(short_path, origin, streams=1, streams_max=1) as node:
        with ExitStack() as stack:
            calls = [stack.enter_context(node.calling(origin.url("m"))) for _ in range(3)]
            for call in calls:
                await until(lambda call=call: call.progress().done_bytes > len(data) // 4)
                assert "changed at the origin; fetched afresh" in call.progress().reason
            for call in calls:
                assert await call.wait(FETCH_S)
                assert call.result().path.read_bytes() == new.data
        await node.fetch(origin.url("m"))
    assert caplog.text.count("is thrown away: the origin has another version by now") == 1


@pytest.mark.parametrize(("etag", "modified"), NAMELESS)
async def test_without_a_name_of_its_version_a_file_is_one_whole_reply(
    etag: Callable[[], str | None],
    modified: Callable[[], str | None],
    short_path: Path,
    origin: Origin,
    data: bytes,
    other_data: bytes,
) -> None:
    names = {"etag": etag(), "last_modified": modified()}
    file = origin.put("m", data, **names)
    file.next_version = File(other_data, **names)
    file.faults = [Fault.TRUNCATE, Fault.CHANGE]  # unnoticeable but for the joint
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("m"))).read_bytes() == other_data
        assert origin.bodies("m") == [None, None]


@pytest.mark.parametrize("size", [(40 << 20) + 5, 20 << 20, 1])
async def test_a_new_version_of_another_length_is_noticed_by_a_cdn_that_names_none(
    size: int, short_path: Path, origin: Origin, data: bytes, other_data: bytes
) -> None:
    new = (other_data * 2)[:size]
    file = origin.put("m", data, etag=None, ignores_match=True)
    file.next_version = File(new, None, ignores_match=True)  # the same date, to the second
    file.faults = [Fault.TRUNCATE, Fault.CHANGE]
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("m"))).read_bytes() == new


WEAK, LONGER = 'W/"v1"', 4


@pytest.mark.parametrize(
    ("new", "more_bytes", "is_noticed"),
    [
        (('W/"v2"', None), 0, True),
        ((WEAK, YEAR_2000), 0, True),
        ((WEAK, None), LONGER, True),
        ((WEAK, None), 0, False),  # nobody can tell; a file whose server sends no more is kept
    ],
    ids=["other etag", "date", "other length", "same"],
)
async def test_from_one_fetch_to_the_next_a_weak_etag_names_a_version_with_length_and_date(
    new: tuple[str, str | None],
    more_bytes: int,
    is_noticed: bool,
    short_path: Path,
    origin: Origin,
    data: bytes,
    other_data: bytes,
) -> None:
    before, after = data[:1000], other_data[: 1000 + more_bytes]
    origin.put("m", before, etag=WEAK, last_modified=None)
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("m"))).read_bytes() == before
        origin.put("m", after, etag=new[0], last_modified=new[1])
        found = (await node.fetch(origin.url("m"))).read_bytes()
    assert found == (after if is_noticed else before)
    assert len(origin.bodies("m")) == 1 + is_noticed


async def test_an_object_that_keeps_changing_is_an_error_that_says_so(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("m", data).lasting = Fault.CHURN
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.Aborted, match="changed 2 times while it was fetched"):
            await node.fetch(origin.url("m"))
        assert node.entries("partials") == []


@pytest.mark.parametrize("etag", ['W/"v1"', None])
async def test_what_cannot_be_gone_on_with_is_not_kept(
    etag: str | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("m", data, etag=etag, last_modified=None).faults = [Fault.TRUNCATE] * 1000
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.Unavailable):
            await node.fetch(origin.url("m"))
        assert node.entries("partials") == []
