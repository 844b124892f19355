"""However many wait, the daemon tells them how far it is at a bounded rate, and all the same."""

from __future__ import annotations

import threading
from pathlib import Path

from ckptd.values import Progress
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.waiting import eventually

WAITING = 120  # 480 messages a second, if each had four


def test_a_hundred_who_wait_get_two_hundred_messages_a_second_together(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    with Daemon(short_path, max_bytes_per_s=500_000) as daemon:
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
        last = eventually(lambda: next((each for each in reversed(told) if each.eta_s), None))
        (flight,) = client.status().flights
        assert (last.phase, last.cause, last.reason) == (
            flight.phase,
            flight.cause,
            flight.reason,
        )
        assert flight.waiters == WAITING
        client.configure({"max_bytes_per_s": None})
        for thread in threads:
            thread.join(30)
