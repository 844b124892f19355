"""Many different objects at once share the daemon's memory, and all of them arrive."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from fakes.daemon import Daemon
from fakes.origin import Fault, Origin

COUNT = 48  # more than the daemon has buffers


def test_fetches_by_hash_that_must_try_again_do_not_wait_for_each_other(
    daemon: Daemon, origin: Origin
) -> None:
    bodies = {f"model-{index}": bytes([index]) * 50_000 for index in range(COUNT)}
    for name, body in bodies.items():
        file = origin.put(name, body)
        file.lasting, file.faults = Fault.NO_RANGES, [Fault.UNAVAILABLE] * 3
    client = daemon.client()

    def arrives(name: str) -> bool:
        sha256 = hashlib.sha256(bodies[name]).hexdigest()
        return (
            client.fetch(origin.url(name), sha256=sha256, timeout=30).read_bytes() == bodies[name]
        )

    with ThreadPoolExecutor(COUNT) as callers:
        assert all(callers.map(arrives, bodies))
