"""What makes two URLs one object, and what people see of a URL."""

from __future__ import annotations

import re

import pytest

from ckptd import errors
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.running import ckptd

SIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=60"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature="
)


@pytest.mark.parametrize("etag", ['"v1"', None])
def test_what_a_query_chooses_is_an_object_of_its_own(
    daemon: Daemon, origin: Origin, etag: str | None
) -> None:
    for name in "cd":
        origin.put(f"dl?token={name}", name.encode(), etag=etag)
    client = daemon.client()
    urls = [origin.url(f"dl?token={name}") for name in "cde"]
    origin.put("dl?token=e", b"e", etag=etag)
    for offline in (False, True):
        found = [client.fetch(url, offline=offline).read_bytes() for url in urls[:2]]
        assert found == [b"c", b"d"]
    with pytest.raises(errors.NotFound, match="not in the cache"):
        client.fetch(urls[2], offline=True)


def test_another_user_of_the_origin_may_see_another_object(daemon: Daemon, origin: Origin) -> None:
    origin.put("home", b"theirs")
    client = daemon.client()
    client.fetch(origin.url("home").replace("://", "://one:password@"))
    with pytest.raises(errors.NotFound):
        client.fetch(origin.url("home").replace("://", "://two:password@"), offline=True)


def test_one_object_is_fetched_once_however_it_is_signed(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    client = daemon.client()
    paths = {client.fetch(origin.url(f"model?{SIGNED}{signature}")) for signature in "ab"}
    assert len(paths) == 1
    assert len(origin.bodies("model")) == len({*origin.bodies("model")})
    assert client.fetch(origin.url(f"model?{SIGNED}c"), offline=True) in paths


def test_a_key_in_a_query_is_shown_nowhere(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=1 << 20)
    client = daemon.client()
    url = origin.url("model?api_key=S3CRET")
    with pytest.raises(errors.DeadlineExceeded) as late:
        client.fetch(url, timeout=3)
    assert re.search(
        r"had not arrived after 3 s \(downloading, \d+ of 41943044 bytes", str(late.value)
    )
    (flight,) = client.status().flights
    partials = list((daemon.state_dir / "cache" / "partials").glob("*/journal"))
    told = str(late.value) + flight.object + "".join(p.read_text("latin-1") for p in partials)
    origin.release()
    client.fetch(url)
    for command in (["cache", "ls"], ["cache", "ls", "--json"], ["status", "--json"]):
        told += ckptd(*command, env=daemon.env).stdout
    for file in daemon.directory.rglob("*"):
        if file.is_file() and file.stat().st_size < 1 << 20:
            told += file.read_text("latin-1")
    assert "S3CRET" not in told
    assert flight.object == origin.url("model?…")
    assert told.count(flight.object) >= 3


@pytest.mark.parametrize("name", ["blob.json", "data", "journal", ".blob.json.0.tmp"])
def test_a_file_with_a_name_of_the_caches_own_is_served_before_and_after_a_restart(
    name: str, daemon: Daemon, origin: Origin
) -> None:
    origin.put(name, b"bytes of somebody else")
    for _ in range(2):
        path = daemon.client().fetch(origin.url(name))
        assert path.read_bytes() == b"bytes of somebody else"
        daemon.stop()
        daemon.start()
    assert len(origin.bodies(name)) == 1
