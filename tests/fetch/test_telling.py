"""However many wait, the daemon tells them how far it is at a bounded rate, and all the same."""

from __future__ import annotations

import threading
from math import isclose
from pathlib import Path

import grpc

from ckptd.values import FlightStatus, Progress
from ckptd_proto.v1 import blobs_pb2, blobs_pb2_grpc
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.waiting import eventually

LIMIT = 500_000
WAITING = 120  # 480 messages a second, if each had four


def agree(told: Progress, shown: FlightStatus) -> bool:
    """Whether both say the same, but for what has moved between two messages."""
    if told.eta_s is None or shown.eta_s is None:
        return False
    same = ("phase", "cause", "reason", "streams", "total_bytes")
    return (
        all(getattr(told, name) == getattr(shown, name) for name in same)
        and told.streams > 0
        and 0 <= shown.done_bytes - told.done_bytes < 2 * LIMIT
        and isclose(told.rate_bytes_per_s, shown.rate_bytes_per_s, rel_tol=0.3)
        and isclose(told.eta_s, shown.eta_s, rel_tol=0.3)
    )


def test_a_hundred_who_wait_get_two_hundred_messages_a_second_together(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    with Daemon(short_path, max_bytes_per_s=LIMIT) as daemon:
        client = daemon.client()
        began = client.status().uptime_s
        told: list[Progress] = []
        url = origin.url("model")
        threads = [
            threading.Thread(target=lambda: client.fetch(url, on_progress=told.append))
            for _ in range(WAITING)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(told) > 5 * WAITING, timeout_s=40)
        count, elapsed_s = len(told), client.status().uptime_s - began
        assert count <= 200 * elapsed_s
        eventually(lambda: agree(told[-1], client.status().flights[0]))
        eventually(lambda: [flight.waiters for flight in client.status().flights] == [WAITING])
        client.configure({"max_bytes_per_s": None})
        for thread in threads:
            thread.join(30)


def test_who_does_not_ask_how_far_it_is_is_told_nothing_before_the_file_comes(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=1 << 20)
    daemon.client().status()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        blobs = blobs_pb2_grpc.BlobsStub(channel)
        quiet, told = (
            blobs.Fetch(blobs_pb2.FetchRequest(ref=origin.url("model"), quiet=quiet))
            for quiet in (True, False)
        )
        assert next(told).HasField("progress")
        origin.release()
        assert [event.WhichOneof("event") for event in quiet] == ["blob"]
