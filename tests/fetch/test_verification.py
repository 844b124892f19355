"""What a blob was checked against, and what is found wrong before anybody gets it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptd import errors
from ckptd_proto.crc import crc32c
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.waiting import eventually

CHUNK_BYTES = 16 << 20


def goog(data: bytes) -> dict[str, str]:
    return {"x-goog-hash": "crc32c=" + base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()}


def digest(data: bytes) -> dict[str, str]:
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return {"Repr-Digest": f"sha-256=:{encoded}:"}


def left_over(daemon: Daemon) -> list[Path]:
    return list((daemon.state_dir / "cache" / "partials").iterdir())


def safetensors(size_bytes: int, metadata: dict[str, str] | None = None) -> bytes:
    extent = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}
    header = json.dumps({"__metadata__": metadata or {}, "weight": extent}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size_bytes)


@pytest.mark.parametrize("lasting", [None, Fault.NO_RANGES, Fault.NO_LENGTH])
def test_a_crc32c_that_the_store_states_is_what_the_blob_was_checked_against(
    lasting: Fault | None, daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, headers=goog(data)).lasting = lasting
    assert daemon.client().fetch(origin.url("model")).read_bytes() == data
    (blob,) = daemon.client().blobs()
    assert (blob.verification, blob.sha256) == ("store_checksum", None)


def test_a_sha256_that_the_store_states_is_computed_and_kept(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, headers=digest(data))
    assert daemon.client().fetch(origin.url("model")).read_bytes() == data
    (blob,) = daemon.client().blobs()
    assert (blob.verification, blob.sha256) == ("sha256", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("headers", [goog, digest])
def test_what_was_damaged_on_its_way_is_thrown_away_and_fetched_once_more(
    headers: type, daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, headers=headers(data)).faults = [Fault.CORRUPT]
    assert daemon.client().fetch(origin.url("model")).read_bytes() == data
    assert origin.sent_bytes >= 2 * len(data)


@pytest.mark.parametrize("headers", [goog, digest])
def test_what_is_never_as_its_store_states_is_given_to_nobody(
    headers: type, daemon: Daemon, origin: Origin, data: bytes, other_data: bytes
) -> None:
    origin.put("model", data, headers=headers(other_data))
    with pytest.raises(errors.DataLoss, match="twice, and its origin states"):
        daemon.client().fetch(origin.url("model"))
    assert origin.sent_bytes >= 2 * len(data)
    assert daemon.client().blobs() == []
    assert left_over(daemon) == []


def test_a_caller_who_knows_the_sha256_overrules_the_store(
    daemon: Daemon, origin: Origin, data: bytes, other_data: bytes
) -> None:
    origin.put("model", data, headers=goog(other_data) | digest(other_data))
    sha256 = hashlib.sha256(data).hexdigest()
    assert daemon.client().fetch(origin.url("model"), sha256=sha256).read_bytes() == data
    assert daemon.client().blobs()[0].verification == "sha256"


def test_a_wrong_late_statement_does_not_pass_for_a_check(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    daemon.client().fetch(origin.url("model"))
    with pytest.raises(errors.DataLoss):
        daemon.client().fetch(origin.url("model"), sha256="0" * 64)
    (blob,) = daemon.client().blobs()
    assert (blob.verification, blob.sha256) == ("transport", hashlib.sha256(data).hexdigest())


def test_what_came_while_its_origin_was_wrong_comes_again_for_whoever_knows_better(
    daemon: Daemon, origin: Origin, data: bytes, other_data: bytes
) -> None:
    origin.put("model", other_data)
    client = daemon.client()
    path = client.fetch(origin.url("model"), keep_s=600)
    with path.open("rb") as reader:
        origin.put("model", data)  # under the same version
        stated = hashlib.sha256(data).hexdigest()
        again = client.fetch(origin.url("model"), sha256=stated)
        assert again.read_bytes() == data
        assert reader.read() == other_data
    (blob,) = client.blobs()
    assert (blob.verification, blob.sha256) == ("sha256", stated)
    assert list((daemon.state_dir / "cache" / "quarantine").iterdir()) == []


def test_of_what_its_manifest_knows_better_only_the_wrong_chunk_comes_again(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    wrong = bytearray(data)
    wrong[CHUNK_BYTES] ^= 1
    origin.put("m/model", bytes(wrong))
    daemon.client().fetch(origin.url("m/model"))
    origin.put("m/model", data)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    entry = {"path": "model", "size_bytes": len(data), "crc32c": [crc32c(one) for one in chunks]}
    manifest = {"format": 1, "chunk_bytes": CHUNK_BYTES, "files": [entry]}
    origin.put("m/ckptd-manifest.json", json.dumps(manifest).encode(), etag=None)
    sent = origin.sent_bytes
    tree = daemon.client().fetch(origin.url("m/"))
    assert (tree / "model").read_bytes() == data
    assert origin.sent_bytes - sent < 1.5 * CHUNK_BYTES


def test_a_wrong_manifest_costs_its_chunk_once(short_path: Path, origin: Origin) -> None:
    data = b"right"
    origin.put("m/model", data)
    entry = {"path": "model", "size_bytes": len(data), "crc32c": [1]}
    manifest = {"format": 1, "chunk_bytes": CHUNK_BYTES, "files": [entry]}
    origin.put("m/ckptd-manifest.json", json.dumps(manifest).encode(), etag=None)
    with Daemon(short_path, failure_s=0) as daemon:
        path = daemon.client().fetch(origin.url("m/model"))
        with pytest.raises(errors.DataLoss, match="another checksum"):
            daemon.client().fetch(origin.url("m/"))
        asked = len(origin.bodies("m/model"))
        daemon.kill()
        daemon.start()
        with pytest.raises(errors.DataLoss, match="CRC32C that the manifest states"):
            daemon.client().fetch(origin.url("m/"))
        assert len(origin.bodies("m/model")) == asked
        assert path.read_bytes() == data


def test_a_file_that_its_origin_has_in_part_only_is_not_published(
    daemon: Daemon, origin: Origin
) -> None:
    data = safetensors(CHUNK_BYTES + 100)
    origin.put("cut/model.safetensors", data[:-40])
    origin.put("model.safetensors", data)
    client = daemon.client()
    with pytest.raises(errors.DataLoss, match=f"only {len(data) - 40} of the {len(data)} bytes"):
        client.fetch(origin.url("cut/model.safetensors"))
    assert client.blobs() == []
    assert left_over(daemon) == []
    assert client.fetch(origin.url("model.safetensors")).read_bytes() == data


def gguf(size_bytes: int) -> bytes:
    """One tensor of so many bytes."""
    name, kind_i8 = b"weight", 24
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", len(name)) + name
    head += struct.pack("<IQIQ", 1, size_bytes, kind_i8, 0)
    return head + bytes(-len(head) % 32) + bytes(size_bytes)


def archive(size_bytes: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("weight", bytes(size_bytes))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "lasting"),
    [
        ("m.safetensors", safetensors, None),
        ("m.safetensors", safetensors, Fault.NO_RANGES),
        ("m.gguf", gguf, None),
        ("m.pt", archive, None),
    ],
)
def test_that_a_file_was_cut_short_is_found_out_by_its_first_or_last_chunk(
    name: str,
    make: Callable[[int], bytes],
    lasting: Fault | None,
    short_path: Path,
    origin: Origin,
) -> None:
    data = make(8 * CHUNK_BYTES)
    # so slow, on each connection alike, that a look at the disk takes less than the way to the
    # fifth chunk, on any machine
    origin.put(name, data[:-40], bytes_per_s=CHUNK_BYTES / 2).lasting = lasting
    with Daemon(short_path, streams=2, streams_max=2) as daemon:
        with pytest.raises(errors.DataLoss, match="no sound file of its kind"):
            daemon.client().fetch(origin.url(name))
        assert left_over(daemon) == []
    asked = [one for one in origin.bodies(name) if one is not None]
    starts = {int(one.removeprefix("bytes=").partition("-")[0]) // CHUNK_BYTES for one in asked}
    assert not starts & {4, 5, 6}
    if lasting is not None:  # one reply for all
        assert origin.sent_bytes < 0.9 * len(data)  # though it was asked for twice


def test_what_was_damaged_on_its_way_and_seems_cut_short_comes_once_more(
    short_path: Path, origin: Origin
) -> None:
    data = safetensors(3 * CHUNK_BYTES, {"note": "x" * (CHUNK_BYTES * 3 // 4)})
    origin.put("m.safetensors", data).faults = [Fault.CORRUPT]  # in the middle of the first chunk
    with Daemon(short_path, streams=1, streams_max=1) as daemon:
        assert daemon.client().fetch(origin.url("m.safetensors")).read_bytes() == data
        assert "its safetensors header cannot be read" in daemon.log_text()


LAST_VOLUME = b"the end of a member" * 1000  # of a split archive: no volume ends with all of it
LOOKS_LIKE_A_ZIP = b"PK\x03\x04" + bytes(4 * CHUNK_BYTES)


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.zip", LAST_VOLUME), ("weights.bin", LOOKS_LIKE_A_ZIP)],
    ids=["small", "streams"],
)
def test_a_sha256_that_is_stated_and_right_overrules_what_the_name_suggests(
    name: str, data: bytes, daemon: Daemon, origin: Origin
) -> None:
    origin.put(name, data, headers=digest(data))  # the origin's own says what it has, and no more
    with pytest.raises(errors.DataLoss, match="state its SHA-256 if it is meant to be so"):
        daemon.client().fetch(origin.url(name))
    sha256 = hashlib.sha256(data).hexdigest()  # and nobody waits for the failure to be forgotten
    path = daemon.client().fetch(f"{origin.url(name)}#sha256={sha256}")
    assert path.read_bytes() == data
    assert daemon.log_text().count("is as its stated SHA-256 wants it, and kept") == 1


def test_a_manifest_that_states_the_sha256_overrules_what_the_name_suggests(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("m/model.zip", LAST_VOLUME)
    sha256 = hashlib.sha256(LAST_VOLUME).hexdigest()
    entry = {"path": "model.zip", "size_bytes": len(LAST_VOLUME), "sha256": sha256}
    manifest = {"format": 1, "files": [entry]}
    origin.put("m/ckptd-manifest.json", json.dumps(manifest).encode(), etag=None)
    tree = daemon.client().fetch(origin.url("m/"))
    assert (tree / "model.zip").read_bytes() == LAST_VOLUME


def test_who_states_the_sha256_gets_it_though_whoever_came_first_does_not(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model.zip", LAST_VOLUME)
    origin.hold()
    client, url = daemon.client(), origin.url("model.zip")
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(client.fetch, url)
        assert origin.held.wait(30)
        sha256 = hashlib.sha256(LAST_VOLUME).hexdigest()
        second = callers.submit(client.fetch, url, sha256=sha256)
        eventually(lambda: [flight.waiters for flight in client.status().flights] == [2])
        origin.release()
        assert second.result(30).read_bytes() == LAST_VOLUME
        with pytest.raises(errors.DataLoss, match="no sound file of its kind"):
            first.result(30)


def test_a_wrong_sha256_overrules_nothing(daemon: Daemon, origin: Origin) -> None:
    origin.put("model.zip", LAST_VOLUME)
    with pytest.raises(errors.DataLoss, match="not the stated"):
        daemon.client().fetch(origin.url("model.zip"), sha256="0" * 64)
    assert daemon.client().blobs() == []
