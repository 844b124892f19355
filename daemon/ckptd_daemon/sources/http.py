"""http(s)://, the general way: redirects, proxies, TLS and odd servers, by aiohttp."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar
from urllib.parse import unquote

import aiohttp
import anyio
from yarl import URL

from ckptd_daemon.sources.addresses import PrivateAddressError, public_socket
from ckptd_daemon.sources.brakes import (
    THROTTLED_STATUS,
    TRANSIENT_STATUS,
    Brakes,
    Get,
    pause_s,
)
from ckptd_daemon.sources.checksums import stated
from ckptd_daemon.sources.listing import SIZE_END, unlisted
from ckptd_daemon.sources.proxies import Proxies
from ckptd_daemon.sources.resolver import Resolver
from ckptd_daemon.sources.source import (
    ChangedError,
    Endpoint,
    NoRangesError,
    Object,
    TransientError,
    Validator,
)
from ckptd_daemon.sources.tls import context
from ckptd_daemon.sources.ways import USER_AGENT, Way, heads_within, words
from ckptd_proto import errors
from ckptd_proto.urls import display, identity

BLOCK_BYTES = 1 << 18
PAGE_MAX_S = 120.0
PROGRESS_BYTES = 4 << 10  # less than that while waiting for `stall_s` is a stall
MODIFIED_STRONG_S = 60  # RFC 9110, 8.8.2.2: by then the second of the change is long over
NAME_MAX_BYTES = 200
SIZE_DIGITS = 18  # more are no size of a file


T = TypeVar("T")
Ask = Callable[[str, bool], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Page:
    """A document, and where it was in the end."""

    url: str = field(repr=False)
    body: bytes = field(repr=False)


def file_name(url: str) -> str:
    """Return the last component of the path of *url* if it can be a file name, else `content`."""
    name = unquote(URL(url).raw_path.rpartition("/")[2])
    is_plain = name not in {"", ".", ".."} and "/" not in name and name.isprintable()
    return name if is_plain and len(name.encode()) <= NAME_MAX_BYTES else "content"


def validator_of(headers: Mapping[str, str]) -> Validator:
    """Return the version that a reply claims, and how far to believe it."""
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    if etag is not None:  # a weak one says itself that bytes may differ, whatever the date
        return Validator(etag, modified, is_strong=not etag.startswith("W/"))
    is_old = modified is not None and _is_settled(modified, headers.get("Date"))
    return Validator(None, modified, is_strong=is_old)


def _is_settled(modified: str, date: str | None) -> bool:
    try:
        now = parsedate_to_datetime(date) if date is not None else datetime.now(UTC)
        return (now - parsedate_to_datetime(modified)).total_seconds() >= MODIFIED_STRONG_S
    except (TypeError, ValueError, OverflowError):  # not a date, or one without a zone
        return False


def version_of(validator: Validator, size_bytes: int | None) -> str:
    """Return the words that name the version; new at each call if the origin has none."""
    length = "" if size_bytes is None else f" {size_bytes} bytes"
    if validator.etag is not None:
        # without a date a weak one has to do: else every call would fetch the object anew
        is_alone = validator.is_strong or validator.last_modified is None
        date = "" if is_alone else f" modified {validator.last_modified}"
        return f"etag {validator.etag}{date}{length}"
    if validator.is_strong:
        return f"modified {validator.last_modified}{length}"
    return f"unversioned {uuid.uuid4().hex}"


def unwell(status: int, get: Get) -> TransientError:
    """Return the error that an answer with one of `TRANSIENT_STATUS` means."""
    return TransientError(
        f"the origin answers {status}",
        retry_after_s=pause_s(status, get),
        is_throttled=status in THROTTLED_STATUS,
    )


def refusal(status: int, headers: Mapping[str, str], name: str) -> Exception:
    """Return the error that an answer with *status* means."""
    if status in TRANSIENT_STATUS:
        return unwell(status, headers.get)
    match status:
        case 401:
            return errors.Unauthenticated(
                f"{name}: the origin answers 401: it wants credentials, or other ones; put them into "
                "the URL (https://user:password@host/…), or for the daemon's own user into ~/.netrc"
            )
        case 407:
            return errors.Unauthenticated(
                f"{name}: the proxy wants credentials, or other ones; put them into its URL, in "
                "the daemon's setting proxy or in the environment"
            )
        case 403:
            return errors.PermissionDenied(
                f"{name}: the origin answers 403: these credentials may not read it; ask its owner for "
                "the right, or for a fresh link if it was signed, or give others in the URL"
            )
        case 404 | 410:
            return errors.NotFound(
                f"{name}: the origin answers {status}: there is no such object; check how it is "
                "spelt, and whether it was moved"
            )
        case 412:
            return ChangedError("the origin has another version by now")
        case _:
            return errors.FailedPrecondition(
                f"{name}: the origin answers {status}, which is no way to send a file; see with "
                "`curl -v` what it says, or tell whoever runs it"
            )


def other_total(content_range: str, size_bytes: int | None) -> ChangedError | None:
    """Return the error that a Content-Range means, if it states another length of the whole."""
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", content_range, re.ASCII)
    if found is None or int(found[1]) == size_bytes:
        return None
    return ChangedError(f"the origin now has {found[1]} bytes instead of {size_bytes}")


class Unplugged(aiohttp.TCPConnector):
    """Connects to nobody, and asks nobody for an address: whatever else failed to notice."""

    async def connect(self, *args: Any, **more: Any) -> NoReturn:
        """Refuse."""
        text = "this daemon is offline by its setting, and asks nobody; restart it without it"
        raise errors.FailedPrecondition(text)


class HttpSource:
    """Files of HTTP servers.

    Redirects, too, are decided on the address that is connected to. A proxy would hide it, so
    nothing is public by way of a proxy, and other users are not sent over one.
    """

    def __init__(self, public: Way, anywhere: Way, brakes: Brakes, stall_s: float) -> None:
        self._stall_s = stall_s
        self._public = public  # connects to public addresses only, and itself
        self._anywhere = anywhere
        self.brakes = brakes
        """What the hosts that were asked want not to be asked for a while."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        connect_s: float,
        first_byte_s: float,
        stall_s: float,
        proxy: str | None = None,
        ca_file: Path | None = None,
        is_offline: bool = False,
    ) -> AsyncIterator[Self]:
        """Keep one pool of connections until the block ends; if *is_offline*, no connections.

        *proxy* is asked for everything, and *ca_file* trusted besides the system's certificates.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_s)
        tls = context(ca_file)
        trace = heads_within(connect_s, first_byte_s)

        def session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                timeout=timeout,
                auto_decompress=False,
                connector=connector,
                headers={"Accept-Encoding": "identity", "User-Agent": USER_AGENT},
                skip_auto_headers={"Accept"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )

        plugged = Unplugged if is_offline else aiohttp.TCPConnector
        resolver = Resolver(connect_s)
        guarded = plugged(ssl=tls, resolver=resolver, socket_factory=public_socket)
        async with (
            session(guarded) as public,
            session(plugged(ssl=tls, resolver=resolver)) as anywhere,
        ):
            brakes = Brakes()
            own = Way(anywhere, tls, brakes, Proxies(proxy))
            yield cls(Way(public, tls, brakes), own, brakes, stall_s)

    async def stat(self, url: str, *, only_public: bool) -> Object:
        """Ask for the first byte: that proves ranges, and works where HEAD is refused."""
        return await self._reached(url, self._stat, only_public=only_public)

    async def doors(self, url: str, *, only_public: bool) -> list[Object]:
        """Return where *url* itself may be asked for by a plain client, in the order to try it.

        Nothing but that is known of the objects; `described` says more. None for an odd way.
        """
        ways = [(self._public, True)]
        if not only_public:
            is_special = await self._anywhere.is_special(url)
            ways = [*([] if is_special else ways), (self._anywhere, False)]
        return [
            _unknown(url, door, is_public=is_public)
            for way, is_public in ways
            if (door := await way.plain(url)) is not None
        ]

    async def page(self, url: str, max_bytes: int, *, only_public: bool) -> Page:
        """Return a document that describes others, whole; raises as `stat` does."""
        ask = partial(self._page, max_bytes)
        return await self._reached(url, ask, only_public=only_public)

    async def _reached(self, url: str, ask: Ask[T], *, only_public: bool) -> T:
        """Ask at public addresses if these are all that may be, or are enough."""
        if not only_public and await self._anywhere.is_special(url):
            return await ask(url, False)
        try:
            return await ask(url, True)
        except PrivateAddressError as error:
            if only_public:
                text = (
                    f"{display(url)} is, or leads to, a private address, and this daemon "
                    "goes there for its own user only; start your own with `ckptd serve`"
                )
                raise errors.PermissionDenied(text) from error
        return await ask(url, False)

    async def _page(self, max_bytes: int, url: str, is_public: bool) -> Page:
        name = display(url)
        async with self._way(is_public).get(url, {}, name) as reply:
            if reply.status == 403 and URL(url).path.endswith("/"):
                raise unlisted(name)
            if reply.status != 200:
                raise refusal(reply.status, reply.headers, name)
            _require_identity(reply, name)
            body = bytearray()
            with anyio.move_on_after(PAGE_MAX_S) as patience:
                async with aclosing(self._blocks(reply, reply.content_length)) as blocks:
                    async for block in blocks:
                        body += block
                        if len(body) > max_bytes:
                            text = (
                                f"{name}: the list is longer than {max_bytes} bytes, the most that is "
                                "read of one; ask for its files by their own URLs"
                            )
                            raise errors.FailedPrecondition(text)
            if patience.cancelled_caught:
                raise TransientError(f"the list was not here after {PAGE_MAX_S:.0f} s")
            return Page(str(reply.url), bytes(body))

    async def _stat(self, url: str, is_public: bool) -> Object:
        name = display(url)
        way = self._way(is_public)
        async with way.get(url, {"Range": "bytes=0-0"}, name) as reply:
            if reply.status == 206:
                if (total := _total(reply.headers, name)) is not None:
                    return self._described(url, reply, total, ranges=True, is_public=is_public)
            elif reply.status not in {200, 416}:
                raise refusal(reply.status, reply.headers, name)
            size = reply.content_length
            if reply.status == 200 and size != 1:  # some send the byte, and call it everything
                return self._described(url, reply, size, ranges=False, is_public=is_public)
        # an empty object has no first byte, and not every 206 says how many more there are
        async with way.get(url, {}, name) as reply:
            if reply.status != 200:
                raise refusal(reply.status, reply.headers, name)
            size = reply.content_length
            return self._described(url, reply, size, ranges=False, is_public=is_public)

    @asynccontextmanager
    async def read(self, obj: Object, start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Stream from *start* to the end, following redirects anew."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        if obj.validator.is_strong and obj.validator.etag is not None:
            headers["If-Match"] = obj.validator.etag
        way = self._way(obj.is_public)
        try:
            async with way.get(obj.url, headers, obj.title) as reply:
                self._check(obj, start, reply)
                expected = None if obj.size_bytes is None else obj.size_bytes - start
                async with aclosing(self._blocks(reply, expected)) as blocks:
                    yield blocks
        except PrivateAddressError as error:
            raise ChangedError("the origin is at a private address by now") from error

    def _check(self, obj: Object, start: int, reply: aiohttp.ClientResponse) -> None:
        said = reply.headers.get("Content-Range", "")
        if start and reply.status == 416 and (changed := other_total(said, obj.size_bytes)):
            raise changed
        if start and reply.status in {200, 416}:
            raise NoRangesError
        if reply.status != (206 if start else 200):
            raise refusal(reply.status, reply.headers, obj.title)
        if not obj.validator.admits(reply.headers.get("ETag"), reply.headers.get("Last-Modified")):
            raise ChangedError("the origin has another version by now")
        size = obj.size_bytes
        if start and said != f"bytes {start}-{(size or 0) - 1}/{size}":
            raise NoRangesError
        length = reply.content_length
        if length is not None and size is not None and length != size - start:
            raise ChangedError(f"the origin now has {length} bytes instead of {size - start}")
        if length is None and reply.headers.get("Transfer-Encoding", "").lower() != "chunked":
            raise errors.FailedPrecondition(
                f"{obj.title}: the origin tells neither the length nor the end of its reply, so a "
                "cut cannot be told from the end; serve it with Content-Length or chunked"
            )
        _require_identity(reply, obj.title)

    def _way(self, is_public: bool) -> Way:
        return self._public if is_public else self._anywhere

    async def _blocks(
        self, reply: aiohttp.ClientResponse, expected_bytes: int | None
    ) -> AsyncGenerator[bytes, None]:
        seen, stalled_s, progress = 0, 0.0, 0
        try:
            while True:
                began = anyio.current_time()
                if not (block := await reply.content.read(BLOCK_BYTES)):
                    break
                seen += len(block)
                stalled_s += anyio.current_time() - began
                if (progress := progress + len(block)) >= PROGRESS_BYTES:
                    stalled_s, progress = 0.0, 0
                elif stalled_s > self._stall_s:
                    raise TransientError(
                        f"the reply dribbles: {progress} bytes in {stalled_s:.0f} s"
                    )
                if expected_bytes is not None and seen > expected_bytes:
                    raise TransientError(f"the reply has more than {expected_bytes} bytes")
                yield block
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransientError(f"the reply broke off: {words(error)}") from error
        if expected_bytes is not None and seen != expected_bytes:
            raise TransientError(f"the reply has {seen} bytes instead of {expected_bytes}")

    def _described(
        self,
        url: str,
        reply: aiohttp.ClientResponse,
        size_bytes: int | None,
        *,
        ranges: bool,
        is_public: bool,
    ) -> Object:
        _require_identity(reply, display(url))
        door = self._way(is_public).endpoint(reply)
        obj = replace(_unknown(url, door, is_public=is_public), accepts_ranges=ranges)
        return described(obj, size_bytes, reply.headers, is_whole=reply.status == 200)


def _unknown(url: str, door: Endpoint | None, *, is_public: bool) -> Object:
    return Object(
        id=identity(url),
        title=display(url),
        version="",
        name=file_name(url),
        size_bytes=None,
        accepts_ranges=True,
        validator=Validator(),
        url=url,
        is_public=is_public,
        direct=door,
    )


def described(
    obj: Object, size_bytes: int | None, headers: Mapping[str, str], *, is_whole: bool
) -> Object:
    """Return *obj* with what the headers of a reply tell; *is_whole* if all of it is the body."""
    if size_bytes is not None and size_bytes >= SIZE_END:
        raise errors.FailedPrecondition(_no_size(obj.title, str(size_bytes)))
    validator = validator_of(headers)
    return replace(
        obj,
        version=version_of(validator, size_bytes) + ("" if obj.is_public else " private"),
        size_bytes=size_bytes,
        validator=validator,
        checksums=stated(headers.items(), is_whole=is_whole),
    )


def _total(headers: Mapping[str, str], name: str) -> int | None:
    """Return the size that the reply to the question states; None if it is no such reply."""
    found = re.fullmatch(r"bytes 0-0/(\d+)", headers.get("Content-Range", ""), re.ASCII)
    if found is None:
        return None
    if len(found[1]) > SIZE_DIGITS:
        raise errors.FailedPrecondition(_no_size(name, f"{found[1][:SIZE_DIGITS]}…"))
    return int(found[1])


def _no_size(name: str, stated: str) -> str:
    return (
        f"{name}: the origin states {stated} bytes by its Content-Range or Content-Length, which no "
        "file has; tell whoever runs it"
    )


def _require_identity(reply: aiohttp.ClientResponse, name: str) -> None:
    encoding = reply.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise errors.FailedPrecondition(
            f"{name}: the origin sends it {encoding}-encoded although the plain bytes were asked for; "
            "have it served without Content-Encoding, or ask for another URL of it"
        )
