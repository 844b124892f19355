"""Blobs are read back from the disk; what is damaged goes, and only what is damaged comes again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.values import Verdict
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.waiting import eventually

CHUNK_BYTES = 16 << 20


def rot(path: Path, *offsets: int) -> None:
    """Let the disk change bytes below whoever has the file open."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            wrong = file.read(1)[0] ^ 0xFF
            file.seek(offset)
            file.write(bytes([wrong]))
    path.chmod(0o444)


def quarantine(daemon: Daemon) -> list[Path]:
    return list((daemon.state_dir / "cache" / "quarantine").iterdir())


def only(verdicts: list[Verdict]) -> Verdict:
    (verdict,) = verdicts
    return verdict


def test_sound_blobs_are_told_sound_and_stay(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("a", data)
    origin.put("empty", b"")
    paths = [daemon.client().fetch(origin.url(name)) for name in ("a", "empty")]
    verdicts = daemon.client().verify_blobs()
    assert {(verdict.object, verdict.damaged_chunks) for verdict in verdicts} == {
        (origin.url("a"), ()),
        (origin.url("empty"), ()),
    }
    assert [daemon.client().fetch(origin.url(name)) for name in ("a", "empty")] == paths


def test_a_damaged_blob_is_served_no_more_and_only_its_bad_chunk_comes_again(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    client = daemon.client()
    path = client.fetch(origin.url("a"))
    with path.open("rb") as reader:
        rot(path, CHUNK_BYTES + 5)
        verdict = only(client.verify_blobs())
        assert verdict.damaged_chunks == (1,)
        assert verdict.quarantine is not None
        assert verdict.quarantine.exists()
        assert client.blobs() == []
        asked = len(origin.bodies("a"))
        again = client.fetch(origin.url("a"))
        assert again.read_bytes() == data
        ranges = {tuple(map(int, said[6:].split("-"))) for said in origin.bodies("a")[asked:]}
        assert all(CHUNK_BYTES <= start < end < 2 * CHUNK_BYTES for start, end in ranges)
        # whoever had it open reads on in a file of its own
        assert os.fstat(reader.fileno()).st_ino != again.stat().st_ino
        assert len(reader.read()) == len(data)
    assert only(client.verify_blobs()).damaged_chunks == ()
    assert quarantine(daemon) == []


def test_a_repair_survives_a_kill_and_a_restart(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    path = daemon.client().fetch(origin.url("a"))
    rot(path, 7, len(data) - 1)
    assert only(daemon.client().verify_blobs()).damaged_chunks == (0, 2)
    origin.hold(after_bytes=1 << 20)
    with pytest.raises(errors.DeadlineExceeded):
        daemon.client().fetch(origin.url("a"), timeout=3)
    daemon.kill()
    origin.release()
    sent = origin.sent_bytes
    daemon.start()
    assert daemon.client().fetch(origin.url("a")).read_bytes() == data
    assert origin.sent_bytes - sent < 2 * CHUNK_BYTES


def test_a_chunk_that_comes_damaged_for_a_repair_is_asked_for_again(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    file = origin.put("a", data)
    path = daemon.client().fetch(origin.url("a"))
    rot(path, 0)
    daemon.client().verify_blobs()
    file.faults = [Fault.CORRUPT]
    assert daemon.client().fetch(origin.url("a")).read_bytes() == data


def test_what_never_matches_the_known_checksums_is_an_error_and_then_fetched_anew(
    short_path: Path, origin: Origin, data: bytes, other_data: bytes
) -> None:
    origin.put("a", data)
    with Daemon(short_path, failure_s=0) as daemon:
        path = daemon.client().fetch(origin.url("a"))
        rot(path, 0)
        daemon.client().verify_blobs()
        origin.put("a", other_data)  # under the same version: nobody may mix the two
        with pytest.raises(errors.DataLoss, match="another checksum"):
            daemon.client().fetch(origin.url("a"))
        assert daemon.client().blobs() == []
        assert daemon.client().fetch(origin.url("a")).read_bytes() == other_data


def test_only_what_is_named_is_read_and_a_wrong_name_is_told(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    for name in ("a", "b"):
        origin.put(name, data[: 1 << 20])
        rot(daemon.client().fetch(origin.url(name)), 0)
    client = daemon.client()
    key = client.blobs()[0].key
    with pytest.raises(errors.NotFound, match="cache ls"):
        client.verify_blobs([key, "none"])
    assert len(client.blobs()) == 2
    assert only(client.verify_blobs([key])).key == key
    assert [blob.key for blob in client.blobs()] != [key]
    assert len(client.blobs()) == 1


def test_the_command_tells_of_each_and_says_by_its_exit_code_that_some_are_damaged(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    path = daemon.client().fetch(origin.url("a"))
    assert verify(daemon).returncode == 0
    assert " sound  " in verify(daemon).stdout
    rot(path, 0)
    told = verify(daemon, "--json")
    assert told.returncode == 5
    assert json.loads(told.stdout)["damaged_chunks"] == [0]
    assert json.loads(told.stderr)["error"] == "DataLoss"
    eventually(lambda: daemon.client().blobs() == [])


def verify(daemon: Daemon, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ckptd.cli", "cache", "verify", *flags]
    return subprocess.run(command, env=daemon.env, capture_output=True, text=True, check=False)
