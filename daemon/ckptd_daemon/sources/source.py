"""What every remote is: an object with an immutable version, readable by byte ranges."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from ckptd_daemon.sources.checksums import NOTHING_STATED, Checksums


@dataclass(frozen=True, slots=True)
class Validator:
    """How an origin names the version of an object, in its own words."""

    etag: str | None = None
    last_modified: str | None = None
    is_strong: bool = False
    """Equal validators promise equal bytes, so that ranges of several replies may be joined."""

    def admits(self, etag: str | None, last_modified: str | None) -> bool:
        """Tell whether a reply with these validators is of this very version."""
        if self.is_strong and self.etag is not None:
            return etag == self.etag
        return (etag, last_modified) == (self.etag, self.last_modified)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; shows host and port only."""

    scheme: str
    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What it is told besides the request."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the bytes are once every redirect is followed; may hold secrets, so it has no repr."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext = field(repr=False)
    proxy: Proxy | None = None


@dataclass(frozen=True, slots=True)
class Object:
    """One immutable version of a remote file, as its origin described it."""

    id: str
    """The same for everyone who asks for the same thing, and nobody else's; keeps no secret."""
    title: str
    """What people see as its name; two objects may share one."""
    version: str
    """With `id` it names the bytes for ever; unique to this answer if the origin has no versions."""
    name: str
    """The file name that it suggests; safe as a path component."""
    size_bytes: int | None
    accepts_ranges: bool
    validator: Validator
    url: str = field(repr=False)
    """As it was asked for, secrets included."""
    is_public: bool = True
    """Read from public addresses only, whoever asks; else its `version` differs, too."""
    direct: Endpoint | None = None
    """Set when plain HTTP/1.1 reaches the bytes, directly or over a plain proxy."""
    checksums: Checksums = NOTHING_STATED
    """Of the whole object, as far as the origin states them."""
    chunk_crc32c: tuple[int, ...] = ()
    """Of each chunk of the cache's size, if somebody who published the object states them."""

    @property
    def is_rangeable(self) -> bool:
        """Whether ranges may be asked for in any order and joined."""
        return self.accepts_ranges and self.size_bytes is not None and self.validator.is_strong


class TransientError(Exception):
    """The origin failed for now; the message says how, without secrets."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_throttled: bool = False,
        is_nowhere: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_throttled = is_throttled
        """The origin asks for fewer requests, rather than failing by itself."""
        self.is_nowhere = is_nowhere
        """Nobody is where the origin should be: the address may be a wrong one."""


class BrakedError(TransientError):
    """A host on the way wants to be left alone, so it was not asked: waited for, it costs no try."""

    def __init__(self, url: str, left_s: float) -> None:
        super().__init__(
            "a host on the way asks to be left alone", retry_after_s=left_s, is_throttled=True
        )
        self.url = url
        """Where the way has come to; may hold secrets."""


class ChangedError(Exception):
    """The origin has another version of the object than the one being read."""


class NoRangesError(Exception):
    """The origin answers a range with something else, though it had promised ranges."""


class Source(Protocol):
    """A kind of remote.

    Both methods raise `TransientError` for what may pass, and one of our typed errors else.
    """

    async def stat(self, url: str, *, only_public: bool) -> Object:
        """Describe what *url* names now; with *only_public*, as the public internet sees it."""

    def read(self, obj: Object, start: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream the object's bytes from *start* to its end: all of them, or an error.

        Raises `ChangedError` and, with *start* > 0, `NoRangesError`.
        """
