"""HTTP proxies: which one the way to a URL takes, and how to get through it."""

from __future__ import annotations

import base64
import errno
import http.client
import io
import socket
import time
import urllib.request
from math import inf
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from ckptd_daemon.sources.exempt import Exempt
from ckptd_daemon.sources.source import Proxy
from ckptd_proto import errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DEFAULT_PORT = 3128


class Proxies:
    """The configured proxy for everything, else those of the environment; `NO_PROXY` excepts."""

    def __init__(self, configured: str | None) -> None:
        self._configured = configured
        self._named = urllib.request.getproxies()  # once: no environment changes under a process
        self._exempt = Exempt(self._named.get("no", ""))

    def of(self, url: str) -> Proxy | None:
        """Return the proxy that *url* is asked for over, if any; raises `FailedPrecondition`."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if self._exempt.has(parts.hostname or "", port):
            return None
        if self._configured is not None:
            return parsed(self._configured, "the setting proxy")
        for scheme in (parts.scheme, "all"):
            if found := self._named.get(scheme):
                return parsed(found, f"{scheme}_proxy of the environment")
        return None


def parsed(text: str, where: str) -> Proxy:
    """Return the proxy that *text* names; the error tells *where* it is from, and no secret."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if parts.scheme not in {"http", "https"} or not host:
        raise errors.FailedPrecondition(
            f"{where} is no HTTP proxy; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
        )
    return Proxy(parts.scheme, host, port, _authorization(parts))


def tunnel(sock: socket.socket, host: str, port: int, proxy: Proxy) -> None:
    """Have the *proxy* that *sock* is connected to connect it to *host*; `OSError` if it does not.

    Blocks for at most the timeout of *sock*, however the answer dribbles.
    """
    patience_s = sock.gettimeout()
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": target, **proxy.headers}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    answer = _Answer(sock, patience_s)
    with http.client.HTTPResponse(answer, method="CONNECT") as reply:  # type: ignore[arg-type]
        reply.begin()
        if reply.status != 200:
            raise OSError(errno.EPROTO, f"the proxy answers {reply.status}")
    sock.settimeout(patience_s)


class _Answer(io.RawIOBase):
    """What comes over a socket within a time that is for all of it; for `HTTPResponse` to read."""

    def __init__(self, sock: socket.socket, patience_s: float | None) -> None:
        self._sock = sock
        self._due = inf if patience_s is None else time.monotonic() + patience_s

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if (left_s := self._due - time.monotonic()) <= 0:
            raise TimeoutError
        self._sock.settimeout(None if left_s == inf else left_s)
        return self._sock.recv_into(buffer)


def _authorization(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    userinfo = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return "Basic " + base64.b64encode(userinfo).decode()
