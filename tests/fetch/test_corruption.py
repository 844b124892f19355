"""Bytes that were damaged on their way: what a stated SHA-256 is for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ckptd_daemon.store.partials import Partial
from ckptd_proto import errors
from fakes.node import clean
from fakes.origin import Fault, Origin

FAULTS = [
    Fault.NONE,
    Fault.CORRUPT,
    Fault.NO_RANGES,
    Fault.NO_LENGTH,
    Fault.OTHER_RANGE,
    Fault.LABELLED_200,
    Fault.TRUNCATE,
    Fault.STALL,
]
WRONG = hashlib.sha256(b"something else").hexdigest()


@pytest.fixture(scope="module")
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("etag", ['"strong"', None], ids=["ranges", "one_reply"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
async def test_a_stated_sha256_is_what_the_bytes_have(
    fault: Fault, etag: str | None, sha256: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, etag=etag).faults = [fault]
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("model"), sha256)).read_bytes() == data
        assert node.entries("partials") == []


@pytest.mark.parametrize("etag", ['"strong"', None], ids=["ranges", "one_reply"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
async def test_a_wrong_sha256_is_data_loss_and_nothing_is_kept(
    fault: Fault, etag: str | None, sha256: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, etag=etag).faults = [fault]
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.DataLoss, match=f"not the stated {WRONG}"):
            await node.fetch(origin.url("model"), WRONG)
        assert node.entries("partials") == node.entries("blobs") == []


async def test_bytes_that_are_always_damaged_are_never_handed_out(
    sha256: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).lasting = Fault.CORRUPT
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.DataLoss, match=f"not the stated {sha256}"):
            await node.fetch(origin.url("model"), sha256)
        assert node.entries("partials") == node.entries("blobs") == []


async def test_a_disk_that_cannot_read_back_what_it_took_is_told_and_may_get_well(
    sha256: str,
    short_path: Path,
    origin: Origin,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(*_: object) -> None:
        raise errors.Unavailable("the disk failed")

    origin.put("model", data)
    async with clean(short_path, origin, failure_s=0) as node:
        with monkeypatch.context() as patched:
            patched.setattr(Partial, "blocks", unreadable)
            with pytest.raises(errors.Unavailable, match="the disk failed"):
                await node.fetch(origin.url("model"), sha256)
        assert (await node.fetch(origin.url("model"), sha256)).read_bytes() == data


async def test_bytes_that_rotted_in_the_cache_are_not_blamed_on_who_published_them(
    sha256: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    async with clean(short_path, origin) as node:
        path = await node.fetch(origin.url("model"))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(bytes([data[0] ^ 1]))
        sent = origin.sent_bytes
        assert (await node.fetch(origin.url("model"), sha256)).read_bytes() == data
        assert origin.sent_bytes - sent < len(data) // 2  # the one chunk that was damaged
