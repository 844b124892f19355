"""From a URL to its reply: each redirect on the way is a question of its own.

Whose credentials go along, over which proxy, and whether to go there at all.
"""

from __future__ import annotations

import base64
import netrc
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace

import aiohttp
import anyio
from anyio import to_thread
from yarl import URL

from ckptd_daemon.sources.addresses import (
    PrivateAddressError,
    is_literally_private,
    is_nowhere,
)
from ckptd_daemon.sources.brakes import TRANSIENT_STATUS, Brakes
from ckptd_daemon.sources.proxies import Proxies
from ckptd_daemon.sources.source import BrakedError, Endpoint, Proxy, TransientError
from ckptd_proto import errors
from ckptd_proto.urls import display

REDIRECTS_MAX = 10
USER_AGENT = "ckptd"
NETRC_S = 1.0  # for so long one reading of the file is believed
TUNNEL_STEPS = 4  # the proxy's name, its connection, its answer, and TLS with the origin behind it
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PROXY_AUTHORIZATION = "Proxy-Authorization"


@dataclass(slots=True)
class Head:
    """The wait for the head of one reply, and how it is come by; for aiohttp to hand around."""

    is_tunnelled: bool
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def within(self, seconds: float) -> None:
        """Wait for so long from now on, whatever was said before."""
        self.scope.deadline = anyio.current_time() + seconds


class Way:
    """One way to origins, for one kind of caller.

    Without *proxies* it is for anybody: it connects itself, and knows no password but those that
    the URL brings. With them it is for the daemon's own user, whose `.netrc` counts, too.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        tls: ssl.SSLContext,
        brakes: Brakes,
        proxies: Proxies | None = None,
    ) -> None:
        self._session = session
        self._tls = tls
        self._brakes = brakes
        self._proxies = proxies
        self._netrc = Netrc()

    async def is_special(self, url: str) -> bool:
        """Whether *url* is asked for at a private address, over a proxy, or by `.netrc`."""
        at = _read(url, display(url))
        if is_literally_private(at.host or "") or self._proxy(at) is not None:
            return True
        return bool(await self._known(at))

    async def plain(self, url: str) -> Endpoint | None:
        """Return where *url* itself is, and what to ask it with, if a plain client can do so now."""
        at, credentials = _split(_read(url, display(url)))
        if self._proxy(at) is not None or at.scheme not in {"http", "https"} or not at.host:
            return None
        headers = {**(credentials or await self._known(at)), "User-Agent": USER_AGENT}
        return Endpoint(str(at.with_fragment(None)), headers, self._tls)

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str], name: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the final reply; its body may be left unread.

        Credentials of the URL go to its own host and port only, over its own scheme. Raises
        `BrakedError` rather than wait: whoever asks knows what to hold meanwhile, and whom to tell.
        """
        at, credentials = _split(_read(url, name))
        for _ in range(REDIRECTS_MAX):
            sent = {**(credentials or await self._known(at)), **headers}
            if (left_s := self._brakes.left_s(str(at))) > 0:  # also where we are sent
                raise BrakedError(str(at), left_s)
            reply = await self._asked(at, sent, name)
            async with reply:
                self._brakes.heed(str(at), reply.status, reply.headers.get)
                if (target := _redirect(reply, name)) is None:
                    try:
                        yield reply
                    finally:
                        if not reply.content.at_eof():
                            reply.close()
                    return
            bare, own = _split(target)
            if bare.origin() != at.origin():
                credentials = own
            at = bare
        text = (
            f"{name}: more than {REDIRECTS_MAX} redirects: the origin sends us in circles, as some do "
            "without credentials or a cookie; give credentials, or the URL that a browser ends at"
        )
        raise errors.FailedPrecondition(text)

    def endpoint(self, reply: aiohttp.ClientResponse) -> Endpoint | None:
        """Return where *reply* came from, and what it was asked with, if a plain client can, too."""
        proxy = self._proxy(reply.url)
        if proxy is not None and proxy.scheme != "http":
            return None
        sent = reply.request_info.headers
        headers = {key: sent[key] for key in ("Authorization", "User-Agent") if key in sent}
        return Endpoint(str(reply.url.with_fragment(None)), headers, self._tls, proxy)

    def _proxy(self, url: URL) -> Proxy | None:
        return None if self._proxies is None else self._proxies.of(str(url))

    async def _known(self, url: URL) -> dict[str, str]:
        """Return what the user's `.netrc` has for the host of *url*."""
        if self._proxies is None:
            return {}
        return await self._netrc.of(url.host or "")

    async def _asked(
        self, url: URL, headers: Mapping[str, str], name: str
    ) -> aiohttp.ClientResponse:
        proxy = self._proxy(url)
        for_proxy = None if proxy is None else proxy.headers
        if url.scheme == "http" and for_proxy:  # no tunnel: it reads what we ask
            headers = {**headers, **for_proxy}
        head = Head(is_tunnelled=proxy is not None and url.scheme == "https")
        whom = "the origin" if proxy is None else f"the origin, over the proxy {proxy},"
        try:
            with head.scope:
                return await self._session.get(
                    url,
                    headers=headers,
                    allow_redirects=False,
                    proxy=None if proxy is None else proxy.url,
                    proxy_headers=for_proxy,
                    trace_request_ctx=head,
                )
        except aiohttp.InvalidURL as error:
            raise errors.InvalidArgument(f"{name} is not a URL that can be asked for") from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise _untrusted(url, name, error) from error
        except aiohttp.ClientHttpProxyError as error:
            raise _refused(proxy, name, error.status) from error
        except aiohttp.ClientProxyConnectionError as error:
            text = f"the proxy {proxy} cannot be reached: {words(error)}"
            raise TransientError(text, is_nowhere=is_nowhere(error.os_error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            refused = getattr(error, "os_error", None)
            if isinstance(refused, PrivateAddressError):
                raise refused from None
            text = f"{whom} cannot be reached: {words(error)}"
            raise TransientError(text, is_nowhere=is_nowhere(refused)) from error
        raise TransientError(f"{whom} cannot be reached: no answer in time")


def heads_within(connect_s: float, first_byte_s: float) -> aiohttp.TraceConfig:
    """Have the head of every answer be there so soon after its request, however it dribbles.

    And every tunnel: what the proxy answers has no limit of aiohttp's, unlike all other steps.
    """

    async def connecting(_: object, context: SimpleNamespace, __: object) -> None:
        head: Head = context.trace_request_ctx
        if head.is_tunnelled:
            head.within(TUNNEL_STEPS * connect_s)

    async def sent(_: object, context: SimpleNamespace, __: object) -> None:
        head: Head = context.trace_request_ctx
        head.within(first_byte_s)

    found = aiohttp.TraceConfig()
    found.on_connection_create_start.append(connecting)
    found.on_request_headers_sent.append(sent)
    return found


def _read(url: str, name: str) -> URL:
    try:
        return URL(url)
    except ValueError as error:
        raise errors.InvalidArgument(f"{name} is not a URL that can be asked for") from error


def _split(url: URL) -> tuple[URL, dict[str, str]]:
    """Return *url* without user and password, and these as a header."""
    if url.user is None:
        return url, {}
    return url.with_user(None), _basic(url.user, url.password or "")


def _basic(user: str, password: str) -> dict[str, str]:
    userinfo = f"{user}:{password}".encode()
    return {"Authorization": "Basic " + base64.b64encode(userinfo).decode()}


class Netrc:
    """What `$NETRC`, else `~/.netrc`, has for hosts, as it was at most a second ago."""

    def __init__(self) -> None:
        self._hosts: Mapping[str, tuple[str, str, str]] = {}
        self._read_at = -inf
        self._reading = anyio.Lock()

    async def of(self, host: str) -> dict[str, str]:
        """Return the credentials for *host* as a header; the file's default is for nobody.

        Whoever redirects us could collect the default, as no host is named.
        """
        async with self._reading:
            if anyio.current_time() - self._read_at >= NETRC_S:
                self._hosts = await to_thread.run_sync(_netrc_hosts)
                self._read_at = anyio.current_time()
        if host not in self._hosts:
            return {}
        user, _, password = self._hosts[host]
        return _basic(user, password)


def _netrc_hosts() -> Mapping[str, tuple[str, str, str]]:
    try:
        return netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return {}


def _redirect(reply: aiohttp.ClientResponse, name: str) -> URL | None:
    """Return where *reply* sends us, if it does and we follow."""
    location = reply.headers.get("Location")
    if reply.status not in _REDIRECTS or location is None:
        return None
    try:
        target = reply.url.join(URL(location))
    except ValueError:
        target = URL()
    if target.scheme not in {"http", "https"} or not target.host:
        raise errors.FailedPrecondition(
            f"{name}: the origin redirects to what is no http(s) URL; see with `curl -v` where to, and "
            "tell whoever runs it"
        )
    if _only_ends_with_slash(reply.url, target):
        raise errors.FailedPrecondition(
            f"{name}: it is a directory there, for the origin redirects to {display(str(target))}; end "
            "the reference with / to fetch what is in it, or name one of its files"
        )
    if reply.url.scheme == "https" and target.scheme == "http":
        raise errors.FailedPrecondition(
            f"{name}: the origin redirects from https to {display(str(target))}, which anyone on "
            "the way could change; ask for that address itself if you trust the way"
        )
    return target


def _only_ends_with_slash(asked: URL, target: URL) -> bool:
    """Whether *target* is *asked* with a final slash: a page about a directory would pass for a file.

    Scheme and port may differ, as behind a proxy servers know their own only.
    """
    is_same = (asked.host, asked.raw_query_string) == (target.host, target.raw_query_string)
    return is_same and not asked.path.endswith("/") and target.path == asked.path + "/"


def _untrusted(url: URL, name: str, error: Exception) -> errors.CkptdError:
    """Say which host's TLS failed, how, and what would help."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = f"the certificate of {url.host} is not trusted here: {cause.verify_message}"
        return errors.Unavailable(
            f"{name}: {why}; if it should be, name its CA's file in the daemon's setting ca_file "
            f"(CKPTD_CA_FILE), or in SSL_CERT_FILE{_unreadable()}"
        )
    return errors.Unavailable(
        f"{name}: no TLS with {url.host}: {getattr(cause, 'reason', None) or type(cause).__name__}; "
        "check that the port speaks https, and which versions of TLS"
    )


def _unreadable() -> str:
    """Add that the environment names a file that OpenSSL passed over in silence."""
    file = os.environ.get("SSL_CERT_FILE")
    return f", whose {file} cannot be read" if file and not os.access(file, os.R_OK) else ""


def _refused(proxy: Proxy | None, name: str, status: int) -> Exception:
    if status == 407:
        return errors.Unauthenticated(
            f"{name}: the proxy {proxy} wants credentials, or other ones; put them into its URL, "
            "in the daemon's setting proxy or in the environment"
        )
    if status in TRANSIENT_STATUS:
        return TransientError(f"the proxy {proxy} answers {status}")
    return errors.PermissionDenied(
        f"{name}: the proxy {proxy} answers {status}: it refuses the way; ask who runs it, or have "
        "the host in no_proxy if it can be reached without"
    )


def words(error: BaseException) -> str:
    """Say what happened without the URL, which aiohttp puts into its messages."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not valid HTTP"
    if isinstance(error, OSError):
        number = error.errno or 0  # below 0 for names that cannot be resolved
        return (os.strerror(number) if number > 0 else error.strerror) or type(error).__name__
    return type(error).__name__
