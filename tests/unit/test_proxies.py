"""Which proxy the way to a URL takes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.config import Config
from ckptd_daemon.sources.proxies import Proxies, parsed
from ckptd_daemon.sources.source import Endpoint, Object, TransientError, Validator
from ckptd_daemon.transfer.pace import Flow, Limits, Pacer
from ckptd_daemon.transfer.stream import Stream
from ckptd_proto.errors import FailedPrecondition

URL = "https://models.example/a"


@pytest.fixture(autouse=True)
def no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_without_any_the_way_is_direct() -> None:
    assert Proxies(None).of(URL) is None


@contextmanager
def connecting(said: bytes, *, again: bytes = b"", **settings: float) -> Iterator[Stream]:
    """A stream to be connected over a proxy that says this, and the rest for ten seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as taken:
                while not taken.recv(1 << 16).endswith(b"\r\n\r\n"):
                    pass
                taken.sendall(said)
                taken.settimeout(0.02)
                for _ in range(500 if again else 0):
                    try:
                        taken.sendall(again)
                        if not taken.recv(1):
                            return
                    except TimeoutError:
                        continue
                    except OSError:
                        return  # the asker has had enough

        thread = threading.Thread(target=answer)
        thread.start()
        proxy = parsed(f"127.0.0.1:{server.getsockname()[1]}", "the setting proxy")
        endpoint = Endpoint(URL, {}, ssl.create_default_context(), proxy)
        obj = Object(
            id="o",
            title="o",
            version="v",
            name="o",
            size_bytes=1,
            accepts_ranges=True,
            validator=Validator(None, None, is_strong=False),
            url=URL,
            is_public=False,
        )
        pace = Pacer(Limits()).pace([URL], lambda name, wait_s: None, Flow())
        stream = Stream(obj, endpoint, pace, Config(**settings))
        try:
            yield stream
        finally:
            stream.close()
            thread.join(10)


@pytest.mark.parametrize(
    "said", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 Connected\r\n" + b"a: b\r\n" * 200 + b"\r\n"]
)
def test_a_proxy_that_speaks_no_http_is_a_failure_that_may_pass(said: bytes) -> None:
    with (
        connecting(said) as stream,
        pytest.raises(TransientError, match="the answer is not valid HTTP"),
    ):
        stream.connect()


def test_a_proxy_whose_answer_dribbles_has_no_more_time_than_one_that_is_mute() -> None:
    endless = b"HTTP/1.1 200 Connected\r\na: "
    with (
        connecting(endless, again=b"b", connect_s=0.2) as stream,
        pytest.raises(TransientError, match="nothing came in time"),
    ):
        stream.connect()


def test_the_setting_beats_the_environment_and_no_proxy_beats_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://theirs:3128")
    assert str(Proxies(None).of(URL)) == "theirs:3128"
    assert str(Proxies("http://ours:8080").of(URL)) == "ours:8080"
    monkeypatch.setenv("NO_PROXY", "localhost,.example")
    assert Proxies("http://ours:8080").of(URL) is None
    assert str(Proxies("http://ours:8080").of("https://example.org/a")) == "ours:8080"


def test_a_bare_host_and_one_for_all_schemes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy.example")
    assert str(Proxies(None).of(URL)) == "proxy.example:3128"


@pytest.mark.parametrize(
    "text", ["socks5://user:hunter2@host:1080", "http://", "http://host:hunter2"]
)
def test_what_is_no_http_proxy_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(FailedPrecondition, match="the setting proxy is no HTTP proxy") as refused:
        parsed(text, "the setting proxy")
    assert "hunter2" not in str(refused.value)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=8))
def test_a_password_is_in_nothing_that_is_shown(password: str) -> None:
    proxy = parsed(f"http://user:{quote(password, safe='')}@host:1", "the setting proxy")
    shown = f"{proxy} {proxy!r} {proxy.url}"
    assert password not in shown
    assert quote(password, safe="") not in shown
