"""What is here already is handed over by one short call, with all that a fetch promises."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

import pytest

from ckptd import errors, fetching
from ckptd.client import Client
from ckptd_proto.v1 import blobs_pb2
from fakes.daemon import Daemon
from fakes.origin import Origin

SHA256 = hashlib.sha256(b"data").hexdigest()


class Find(Protocol):
    def __call__(
        self, client: Client, ref: str, *, sha256: str = "", offline: bool = False
    ) -> Path | None: ...


@pytest.fixture(params=["gRPC", "the sibling socket"])
def find(request: pytest.FixtureRequest) -> Find:
    """What the short call hands over, by either way."""

    def found(client: Client, ref: str, *, sha256: str = "", offline: bool = False) -> Path | None:
        asked = blobs_pb2.FetchRequest(ref=ref, sha256=sha256, offline=offline)
        stubs = client.connection._link.stubs
        by_grpc = request.param == "gRPC"
        reply = stubs.blobs.Find(asked) if by_grpc else stubs.questions.find(asked)
        assert reply is not None
        return Path(reply.blob.path) if reply.HasField("blob") else None

    return found


def leases(client: Client) -> int:
    return sum(blob.leases for blob in client.blobs())


@pytest.fixture
def known(daemon: Daemon, origin: Origin) -> str:
    """What is in the cache, in a version that was just asked for, and held by nobody."""
    origin.put("model", b"data")
    url = origin.url("model")
    with daemon.client().open(url):
        pass
    origin.requests.clear()
    return url


def test_a_fetch_of_what_is_here_asks_nobody_else_and_nothing_more(
    daemon: Daemon, origin: Origin, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = daemon.client()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the short call was enough")

    for method in ("Find", "Fetch"):
        monkeypatch.setattr(client.connection._link.stubs.blobs, method, fail)
    with client.open(known) as path:
        assert path.read_bytes() == b"data"
    assert origin.requests == []


def test_it_is_leased_before_it_is_announced(find: Find, daemon: Daemon, known: str) -> None:
    client = daemon.client()
    assert leases(client) == 0
    assert find(client, known) is not None
    assert leases(client) == 1
    assert len(list((daemon.state_dir / "cache" / "leases").glob("*.json"))) == 1


def test_what_is_not_here_is_neither_asked_for_nor_leased(
    find: Find, daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    for name in ("model", "folder/"):
        assert find(client, origin.url(name)) is None
        assert find(client, origin.url(name), offline=True) is None
    assert origin.requests == []
    assert not client.status().flights
    assert list((daemon.state_dir / "cache" / "leases").glob("*.json")) == []


def test_a_version_that_nobody_has_asked_for_lately_is_not_handed_over(
    find: Find, short_path: Path, origin: Origin
) -> None:
    origin.put("model", b"old")
    with Daemon(short_path, revalidate_s=0) as daemon:
        client = daemon.client()
        assert client.fetch(origin.url("model")).read_bytes() == b"old"
        assert find(client, origin.url("model")) is None
        assert find(client, origin.url("model"), offline=True) is not None
        origin.put("model", b"new", etag='"v2"')
        assert client.fetch(origin.url("model")).read_bytes() == b"new"


def test_what_has_another_sha256_is_not_handed_over(find: Find, daemon: Daemon, known: str) -> None:
    client = daemon.client()
    assert find(client, known, sha256=SHA256) is None  # nobody has computed it yet
    client.fetch(known, sha256=SHA256)
    assert find(client, known, sha256=SHA256) is not None
    other = hashlib.sha256(b"other").hexdigest()
    assert find(client, known, sha256=other) is None
    with pytest.raises(errors.DataLoss):
        client.fetch(known, sha256=other)


def test_what_is_damaged_is_fetched_anew(
    find: Find, daemon: Daemon, origin: Origin, known: str
) -> None:
    client = daemon.client()
    (blob,) = client.blobs()
    os.truncate(blob.path, 1)
    assert find(client, known) is None
    assert leases(client) == 0
    assert client.fetch(known).read_bytes() == b"data"


@pytest.mark.parametrize("way", ["fetch", "open"])
def test_a_caller_that_is_interrupted_before_it_saw_the_answer_holds_nothing(
    way: str, daemon: Daemon, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = daemon.client()
    seen: list[int] = []

    def interrupt(_message: object) -> None:
        seen.append(leases(client))
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "require_same_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        if way == "fetch":
            client.fetch(known)
        with client.open(known):
            raise AssertionError
    assert seen == [1]
    assert leases(client) == 0
