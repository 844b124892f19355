"""A daemon that is there and does not answer is waited for, but not without a word."""

from __future__ import annotations

import logging
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptd.client import Client
from ckptd.link import silence
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.waiting import eventually

SILENT = "the daemon has not answered for"
BACK = "the daemon answers again"


def fetch(client: Client, url: str, is_many: bool) -> Path:
    return client.fetch_many([url])[0] if is_many else client.fetch(url)


@pytest.mark.parametrize("is_many", [False, True], ids=["one", "many"])
def test_a_daemon_that_is_stopped_is_told_of_once_and_waited_for(
    is_many: bool,
    daemon: Daemon,
    origin: Origin,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(silence, "LOOK_S", 0.2)
    monkeypatch.setattr(silence, "ANSWER_S", 2.0)
    caplog.set_level(logging.WARNING)
    origin.put("model", data)
    origin.hold(after_bytes=1 << 20)
    client = daemon.client()
    with ThreadPoolExecutor(1) as pool:
        fetched: Future[Path] = pool.submit(fetch, client, origin.url("model"), is_many)
        assert origin.held.wait(20)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            eventually(lambda: SILENT in caplog.text)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        eventually(lambda: BACK in caplog.text)
        origin.release()
        assert fetched.result(30).read_bytes() == data
    assert caplog.text.count(SILENT) == caplog.text.count(BACK) == 1
    eventually(lambda: not watching())


def test_however_many_wait_one_thread_looks_after_all(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=1 << 20)
    client, url = daemon.client(), origin.url("model")
    with ThreadPoolExecutor(4) as pool:
        fetched = [pool.submit(client.fetch, url) for _ in range(4)]
        eventually(lambda: [flight.waiters for flight in client.status().flights] == [4])
        assert len(watching()) == 1
        origin.release()
        assert {one.result(30).read_bytes() for one in fetched} == {data}
    eventually(lambda: not watching())


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ckptd-silence"]
