"""Publishing is killed at every step, and what an earlier or a later ckptd left is met."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import pytest

from ckptd import errors
from ckptd_proto.crc import crc32c
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.tracing import tampered


def cache(daemon: Daemon, name: str) -> list[Path]:
    return sorted((daemon.state_dir / "cache" / name).iterdir())


STEPS = [
    ("fsync", 1, "the data is not durable"),
    ("fsync", 2, "the note is not durable"),
    ("rename", 1, "the note has no name"),
    ("rename", 2, "the data has no name"),
    ("fsync", 3, "the names are not durable"),
    ("fsync", 4, "its place is not durable"),
    ("rename", 3, "the directory is no blob"),
    ("rename", 4, "it is in place and nobody has it"),
]
"""Counted from when the bytes come: by then, what publishes is one thread."""


@pytest.mark.parametrize("size_bytes", [17 << 20, 2 << 20], ids=["by and by", "at once"])
@pytest.mark.parametrize(("call", "nth", "when"), STEPS, ids=[step[2] for step in STEPS])
def test_a_daemon_killed_while_it_publishes_serves_the_right_bytes_after(
    call: str,
    nth: int,
    when: str,
    size_bytes: int,
    short_path: Path,
    origin: Origin,
    data: bytes,
) -> None:
    content = data[:size_bytes]
    origin.put("model", content)
    daemon = Daemon(short_path)
    daemon.start()
    origin.hold(after_bytes=1 << 20)
    failures: list[errors.CkptdError] = []

    def fetch() -> None:
        try:
            daemon.client().fetch(origin.url("model"), timeout=2.5)
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            failures.append(error)

    fetching = threading.Thread(target=fetch)
    fetching.start()
    assert origin.held.wait(30)
    with tampered(daemon.pid, f"{call}:signal=KILL:when={nth}"):
        origin.release()
        fetching.join(30)
    assert failures
    assert daemon.process is not None
    assert daemon.process.wait(30) == -signal.SIGKILL
    daemon.kill()
    with daemon:
        path = daemon.client().fetch(origin.url("model"))
        assert path.read_bytes() == content
        assert [entry.name for entry in path.parent.iterdir() if entry != path] == ["blob.json"]
        assert cache(daemon, "partials") == []
        assert cache(daemon, "trash") == []
        assert cache(daemon, "quarantine") == []
        assert len(daemon.client().blobs()) == 1


def test_a_blob_of_a_newer_ckptd_is_left_alone_and_named(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    for name in ("a", "b"):
        origin.put(name, data)
    strange = daemon.client().fetch(origin.url("a")).parent
    daemon.client().fetch(origin.url("b"))
    daemon.stop()
    note = json.loads((strange / "blob.json").read_bytes())
    (strange / "blob.json").write_text(json.dumps(note | {"format": 2}))
    daemon.start()
    assert [blob.object for blob in daemon.client().blobs()] == [origin.url("b")]
    assert f"{strange}/blob.json has format 2" in daemon.log_text()
    assert strange.exists()
    assert daemon.client().fetch(origin.url("a")).read_bytes() == data  # and it gives way
    assert len(cache(daemon, "quarantine")) == 1


def test_a_note_of_which_a_digit_changed_is_not_believed(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    home = daemon.client().fetch(origin.url("a")).parent
    daemon.stop()
    note = (home / "blob.json").read_bytes()
    digit = str(crc32c(data[: 16 << 20])).encode()
    assert digit in note
    (home / "blob.json").write_bytes(note.replace(digit, digit[:-1] + b"%d" % (9 - digit[-1] % 2)))
    daemon.start()
    assert daemon.client().blobs() == []
    assert len(cache(daemon, "quarantine")) == 1
    assert daemon.client().fetch(origin.url("a")).read_bytes() == data


def test_an_unfinished_blob_of_a_newer_ckptd_is_left_alone_and_a_damaged_one_dropped(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    home = daemon.client().fetch(origin.url("a")).parent
    daemon.stop()
    partials = daemon.state_dir / "cache" / "partials"
    for key, note in (("newer", '{"format": 2}'), ("damaged", "{")):
        shutil.copytree(home, partials / key)
        (partials / key / "blob.json").write_text(note)
    daemon.start()
    assert cache(daemon, "partials") == [partials / "newer"]
    assert f"{partials}/newer/blob.json has format 2" in daemon.log_text()
    assert len(daemon.client().blobs()) == 1


def test_partials_and_leases_of_a_newer_ckptd_are_left_alone_and_named(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    origin.hold(after_bytes=1 << 20)
    with pytest.raises(errors.DeadlineExceeded):
        daemon.client().fetch(origin.url("a"), timeout=3)
    assert origin.held.wait(30)
    daemon.kill()
    (partial,) = cache(daemon, "partials")
    line = b'{"format": 2}'
    journal = b"%08x %b\nwhatever follows" % (crc32c(line), line)
    (partial / "journal").write_bytes(journal)
    lease = daemon.state_dir / "cache" / "leases" / "newer.json"
    lease.write_text(line.decode())
    daemon.start()
    assert (partial / "journal").read_bytes() == journal
    assert lease.read_bytes() == line
    for path in (partial / "journal", lease):
        assert f"{path}" in daemon.log_text()
    origin.release()
    assert daemon.client().fetch(origin.url("a")).read_bytes() == data
    (kept,) = cache(daemon, "quarantine")  # it gave way
    assert (kept / "journal").read_bytes() == journal
