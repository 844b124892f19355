"""Offline means that nobody is asked: no socket is opened to anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptd
from ckptd import environment, errors
from ckptd.fetching import is_offline
from ckptd_daemon import config
from ckptd_daemon.sources.http import HttpSource
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.running import ckptd as run
from fakes.running import python
from fakes.tracing import recorded


def to_the_network(record: Path) -> list[str]:
    return [line for line in record.read_text().splitlines() if "AF_INET" in line]


def test_an_offline_daemon_answers_from_its_cache_and_opens_no_socket(
    short_path: Path, origin: Origin, tmp_path: Path
) -> None:
    origin.put("model", b"data")
    local = tmp_path / "local"
    local.write_bytes(b"mine")
    with Daemon(short_path) as daemon:
        with recorded(daemon.pid, "%network", tmp_path / "online"):
            daemon.client().fetch(origin.url("model"), keep_s=60)
        assert to_the_network(tmp_path / "online")  # this is what it looks like
        daemon.stop()
    asked = len(origin.requests)
    with Daemon(short_path, offline=1) as daemon:
        client = daemon.client()
        client.status()  # gRPC has met its first client
        with recorded(daemon.pid, "%network", tmp_path / "offline"):
            assert client.fetch(origin.url("model")).read_bytes() == b"data"
            assert client.fetch(local) == local
            for absent in (origin.url("other"), "https://models.example/model"):
                with pytest.raises(errors.NotFound, match="not in the cache; to fetch it"):
                    client.fetch(absent)
        assert "Blobs" in (tmp_path / "offline").read_text()
        assert to_the_network(tmp_path / "offline") == []
        assert client.settings()["offline"].value is True
    assert len(origin.requests) == asked


def test_the_environment_makes_all_of_a_process_offline_and_nobody_else(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    offline = daemon.env | {"CKPTD_OFFLINE": "1"}
    done = run("fetch", "-q", origin.url("model"), env=offline)
    assert (done.returncode, done.stdout) == (3, "")
    assert "CKPTD_OFFLINE" in done.stderr
    assert origin.requests == []
    daemon.client().fetch(origin.url("model"), keep_s=60)
    code = f"import ckptd; print(ckptd.fetch({origin.url('model')!r}).read_text())"
    assert python(code, env=offline) == "data\n"


def test_a_prefetch_that_may_ask_nobody_is_refused_unless_all_is_here(
    short_path: Path, origin: Origin
) -> None:
    origin.put("model", b"data")
    origin.put("tree/", b"<h1>Index of /tree/</h1><a href='a'>a</a>", etag=None)
    origin.put("tree/a", b"a")
    with Daemon(short_path) as daemon:
        offline = daemon.env | {"CKPTD_OFFLINE": "1"}
        for name in ("model", "tree/"):
            done = run("prefetch", origin.url(name), env=offline)
            assert (done.returncode, done.stdout) == (3, "")
            assert "in the cache" in done.stderr
            daemon.client().fetch(origin.url(name), keep_s=600)
            done = run("prefetch", origin.url(name), env=offline)
            assert (done.returncode, done.stderr) == (0, "")
        daemon.stop()
    with Daemon(short_path, offline=1) as daemon:
        daemon.client().prefetch([origin.url("model"), origin.url("tree/")])
        for absent in ("other", "other/"):
            with pytest.raises(errors.NotFound, match="in the cache"):
                daemon.client().prefetch([origin.url(absent)])
        assert daemon.client().status().misses == ()


@pytest.mark.parametrize("name", ["CKPTD_OFFLINE", "CKPTD_AUTOSTART"])
def test_a_word_of_the_environment_that_is_neither_yes_nor_no_is_refused(
    daemon: Daemon, origin: Origin, tmp_path: Path, name: str
) -> None:
    origin.put("model", b"data")
    done = run("fetch", "-q", origin.url("model"), env=daemon.env | {name: "maybe"})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name} is 'maybe' in the environment; write 1 or 0" in done.stderr
    assert origin.requests == []


def test_what_the_environment_may_say_of_yes_and_no_is_what_settings_may_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for word in ("1", "TRUE", "yes", "On", "t", "y", "0", "False", "no", "OFF", "f", "n"):
        monkeypatch.setenv("CKPTD_OFFLINE", word)
        assert is_offline() is config.load({}, file=None).offline
    for default in (True, False):
        assert environment.flag("CKPTD_NEVER_SET", default=default) is default


def test_a_daemon_that_an_offline_process_starts_serves_others_online(
    short_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("model", b"data")
    monkeypatch.setenv("CKPTD_SOCKET", str(short_path / "private" / "d.sock"))
    monkeypatch.setenv("CKPTD_STATE_DIR", str(short_path / "state"))
    monkeypatch.setenv("CKPTD_AUTOSTART", "1")
    monkeypatch.setenv("CKPTD_OFFLINE", "1")
    client = ckptd.Client()
    try:
        assert client.settings()["offline"].value is False
        with pytest.raises(errors.NotFound):
            client.fetch(origin.url("model"))
        monkeypatch.delenv("CKPTD_OFFLINE")
        assert client.fetch(origin.url("model")).read_bytes() == b"data"
    finally:
        client.stop()


@pytest.mark.parametrize("only_public", [True, False])
async def test_what_fails_to_notice_that_it_is_offline_is_refused(only_public: bool) -> None:
    async with HttpSource.open(connect_s=1, first_byte_s=1, stall_s=1, is_offline=True) as source:
        with pytest.raises(errors.FailedPrecondition, match="offline by its setting"):
            await source.stat("http://models.example/model", only_public=only_public)
