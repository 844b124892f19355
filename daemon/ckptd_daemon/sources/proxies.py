"""HTTP proxies: which one the way to a URL takes, and how to get through it."""

from __future__ import annotations

import base64
import errno
import http.client
import socket
import urllib.request
from urllib.parse import SplitResult, unquote, urlsplit

from ckptd_daemon.sources.source import Proxy
from ckptd_proto import errors

DEFAULT_PORT = 3128


class Proxies:
    """The configured proxy for everything, else those of the environment; `NO_PROXY` excepts."""

    def __init__(self, configured: str | None) -> None:
        self._configured = configured
        self._named = urllib.request.getproxies()  # once: no environment changes under a process

    def of(self, url: str) -> Proxy | None:
        """Return the proxy that *url* is asked for over, if any; raises `FailedPrecondition`."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if "no" in self._named and urllib.request.proxy_bypass(host):
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
    """Have the *proxy* that *sock* is connected to connect it to *host*; `OSError` if it does not."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": target, **proxy.headers}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    with http.client.HTTPResponse(sock, method="CONNECT") as reply:
        reply.begin()
        if reply.status != 200:
            raise OSError(errno.ECONNREFUSED, f"the proxy answers {reply.status}")


def _authorization(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    userinfo = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return "Basic " + base64.b64encode(userinfo).decode()
