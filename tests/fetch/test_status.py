"""`ckptd status` shows every fetch on its way, and what holds it up."""

from __future__ import annotations

import json
from pathlib import Path

from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.running import ckptd, started
from fakes.waiting import eventually


def test_a_fetch_that_waits_for_its_origin_is_shown_with_the_reason(
    short_path: Path, origin: Origin
) -> None:
    origin.put("model", b"data").lasting = Fault.UNAVAILABLE
    with (
        Daemon(short_path, retries=1000) as daemon,  # it is not given up while we look
        started("fetch", origin.url("model?part=1"), env=daemon.env),
    ):
        client = daemon.client()
        (flight,) = eventually(lambda: [each for each in client.status().flights if each.reason])
        assert (flight.object, flight.phase) == (origin.url("model?…"), "retrying")
        assert (flight.waiters, flight.key, flight.total_bytes) == (1, "", None)
        told = "\n    the origin answers 503"  # but while it is being asked again
        eventually(lambda: told in ckptd("status", env=daemon.env).stdout)


def test_a_fetch_under_way_is_shown_with_its_progress_to_people_and_to_programs(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=4 << 20)
    fetch = "fetch", "-q", origin.url("model")
    with started(*fetch, env=daemon.env) as one, started(*fetch, env=daemon.env) as other:
        client = daemon.client()
        eventually(lambda: [each for each in client.status().flights if each.waiters == 2])
        assert origin.held.wait(30)
        told = ckptd("status", env=daemon.env).stdout
        assert "MB of 41.9 MB" in told
        assert "2 waiting" in told
        (flight,) = json.loads(ckptd("status", "--json", env=daemon.env).stdout)["flights"]
        origin.release()
        assert [each.wait(30) for each in (one, other)] == [0, 0]
    (blob,) = client.blobs()
    assert flight["key"] == blob.key
