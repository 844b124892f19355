"""A reader reads the file that its bytes were verified in, and no other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.fetch.call import Handed, Request
from ckptd_daemon.fetch.reading import Opened, Reading, Terms
from ckptd_daemon.sessions import Process
from ckptd_daemon.sources.source import Object, Validator
from ckptd_daemon.store.blob import Blob, Verification
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.verdict import MismatchError
from ckptd_proto import errors

KEY = "key"
HEADER = Header("1d", "http://host/model", 'etag "v1"', "model", 100, 16 << 20, is_resumable=True)
OBJECT = Object(
    id="1d",
    title=HEADER.title,
    version=HEADER.version,
    name="model",
    size_bytes=100,
    accepts_ranges=True,
    validator=Validator('"v1"', is_strong=True),
    url=HEADER.title,
)


def opened_partial(path: Path) -> Partial:
    partial = Partial(path, HEADER)
    partial.open()
    return partial


def handed(path: Path) -> Handed:
    path.write_bytes(b"x" * 100)
    blob = Blob(
        key=KEY,
        object_id="1d",
        title=HEADER.title,
        version=HEADER.version,
        path=path,
        size_bytes=100,
        sha256=None,
        verification=Verification.TRANSPORT,
        crc32c=(0,),
        chunk_bytes=16 << 20,
        published_at=0,
        used_at=0,
    )
    found = path.stat()
    return Handed(path, 100, found.st_dev, found.st_ino, None, blob, "lease")


async def told(reading: Reading) -> Opened | None:
    opened, _ = await reading.news()
    return opened


@pytest.mark.parametrize("is_unlike", [False, True], ids=["another_try", "mismatch"])
async def test_the_file_of_a_try_that_was_thrown_away_is_not_what_was_verified(
    is_unlike: bool, tmp_path: Path
) -> None:
    reading = Reading(Request(HEADER.title), Process(1, 1, 0), Terms(is_whole=True, is_early=True))
    first, second = (opened_partial(tmp_path / name) for name in ("first", "second"))
    demand = Demand()
    with reading.descriptors():
        try:
            with reading.wanting(demand, OBJECT, KEY, None):
                demand.open(first)
                assert await told(reading) is not None
                if is_unlike:
                    raise MismatchError("SHA-256", "stated", "found", is_of_origin=False)
                demand.open(second)
        except MismatchError:
            assert is_unlike
        result = handed(tmp_path / "blob")
        reading.end(result, None)
        opened = await told(reading)
        assert opened is not None
        assert os.fstat(opened.fd).st_ino == result.inode
    first.close()
    second.close()


async def test_the_file_that_became_the_blob_is_not_opened_again(tmp_path: Path) -> None:
    reading = Reading(Request(HEADER.title), Process(1, 1, 0), Terms(is_whole=True, is_early=True))
    partial = opened_partial(tmp_path / "first")
    demand = Demand()
    with reading.descriptors():
        with reading.wanting(demand, OBJECT, KEY, None):
            demand.open(partial)
            assert await told(reading) is not None
        reading.end(handed(tmp_path / "blob"), None)
        assert await told(reading) is None
    partial.close()


@pytest.mark.parametrize("is_new", [False, True], ids=["no_ranges_any_more", "damaged"])
async def test_a_fetch_that_threw_away_what_was_told_does_not_end_well(
    is_new: bool, tmp_path: Path
) -> None:
    reading = Reading(Request(HEADER.title), Process(1, 1, 0), Terms(is_whole=True, is_early=True))
    first, second = (opened_partial(tmp_path / name) for name in ("first", "second"))
    demand = Demand()

    async def bring() -> None:
        with reading.wanting(demand, OBJECT, KEY, None):
            demand.open(first)
            assert await told(reading) is not None
            first.record(0, 7, 100)
            assert (await reading.news())[1] == [(0, 100)]
            if is_new:
                demand.open(second)
            else:
                first.forget()

    with reading.descriptors(), pytest.raises(errors.DataLoss if is_new else errors.Aborted):
        await bring()
    first.close()
    second.close()


async def test_a_reader_that_wants_the_same_over_and_over_costs_no_more_than_once() -> None:
    huge = replace(OBJECT, size_bytes=1 << 40)
    spans = [(at, 1 << 40) for at in range(50_000)]

    async def wants() -> AsyncIterator[tuple[int, int]]:
        for span in spans:
            yield span

    demand = Demand()
    reading = Reading(Request("ref"), Process(1, 1, 0), Terms(is_whole=False, is_early=True))
    with anyio.fail_after(30):
        await reading.listen(wants())
        with reading.wanting(demand, huge, KEY, None):
            assert len(list(demand.urgent())) == (1 << 40) // HEADER.chunk_bytes


async def test_what_a_reader_wanted_is_wanted_no_more_once_it_has_left() -> None:
    async def wants() -> AsyncIterator[tuple[int, int]]:
        yield 0, 100

    demand = Demand()
    reading = Reading(Request("ref"), Process(1, 1, 0), Terms(is_whole=False, is_early=True))
    await reading.listen(wants())
    with reading.wanting(demand, OBJECT, KEY, None):
        assert list(demand.urgent()) == [0]
    assert list(demand.urgent()) == []
