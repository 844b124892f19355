"""One HTTP/1.1 connection that brings byte ranges straight into reused memory and to the disk.

The byte path: a thread per stream, the standard library's client, `readinto`, direct writes and
a CRC32C while the bytes are hot. It does the plain case only; whatever else an origin says is
`NotFastError`, and the general path asks again.
"""

from __future__ import annotations

import errno
import http.client
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from ckptd_daemon.config import Config
from ckptd_daemon.sources.addresses import Info, PrivateAddressError, dial, is_nowhere, resolve
from ckptd_daemon.sources.brakes import TRANSIENT_STATUS, pause_s
from ckptd_daemon.sources.http import other_total, unwell
from ckptd_daemon.sources.proxies import tunnel
from ckptd_daemon.sources.source import ChangedError, Endpoint, Object, TransientError
from ckptd_daemon.sources.tls import RecordSocket
from ckptd_daemon.store.buffers import touch
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.bottleneck import Stopwatch, Work
from ckptd_daemon.transfer.pace import PIECE_MAX_BYTES, PIECE_MIN_BYTES, Pace
from ckptd_daemon.transfer.plan import Claim
from ckptd_daemon.transfer.whole import WholeSocket, widen
from ckptd_proto.crc import crc32c

REFUSED_STATUS = frozenset({400, 401, 403, 404, 410})  # what a link that expired may answer
PIECE_FIRST_BYTES = 64 << 10
PIECE_STALL_BYTES = 1 << 20  # as much has to come in `stall_s`
PIECE_FAST_S = 0.1
PIECE_SLOW_S = 1.0


class NotFastError(Exception):
    """The origin does something that this path leaves to the general one."""


class StaleError(Exception):
    """A connection that had been idle was closed meanwhile; another one may do."""


class RefusedError(Exception):
    """The origin does not, or no more, let these credentials read what is at this address."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Stream:
    """A connection used by one thread at a time; `interrupt` may come from any thread."""

    def __init__(self, obj: Object, endpoint: Endpoint, pace: Pace, config: Config) -> None:
        self._object = obj
        self._pace = pace
        self._config = config
        self._endpoint = endpoint
        self._path, self._connection = _connection(endpoint)
        self._headers = {**endpoint.headers, "Accept-Encoding": "identity"}
        if endpoint.proxy is not None and not endpoint.url.startswith("https:"):
            self._headers |= endpoint.proxy.headers
        if (etag := obj.validator.etag) is not None and obj.validator.is_strong:
            self._headers["If-Match"] = etag
        self._socket: socket.socket | None = None
        self._reply: http.client.HTTPResponse | None = None
        self._interrupted = False
        self._is_idle = False
        self._is_begun = False  # the reply is for the next range, whatever that is
        self._piece_bytes = PIECE_FIRST_BYTES
        self.address = ""
        """Of the other end, as far as is known."""
        self._received = 0, 0  # by pieces that ended, and what the socket had told by then
        self.time = Stopwatch()
        self.pause_s: float | None = None
        """How long the last reply asks not to be followed by another request."""
        self.late_s: float | None = None
        """How long the last reply was in coming; None if none came, or broke off."""
        self.bytes_per_s = 0.0
        """What came once it had."""
        self._due: float | None = None  # when a piece has to be here; None while none is expected

    @property
    def is_connected(self) -> bool:
        """Whether the next range can be asked for; some origins hang up after each."""
        return self._connection.sock is not None

    def is_silent(self, now: float) -> bool:
        """Whether something should have come by *now*, of the monotonic clock."""
        due = self._due
        return due is not None and due < now

    @property
    def received_bytes(self) -> int:
        """How much came, also of a piece that is not whole."""
        received, told = self._received
        return received + self._came_bytes - told

    @property
    def _came_bytes(self) -> int:
        sock = self._socket
        return sock.came_bytes if isinstance(sock, WholeSocket | RecordSocket) else 0

    @property
    def is_interrupted(self) -> bool:
        """Whether it was ended from our side."""
        return self._interrupted

    @property
    def next_hop(self) -> tuple[str, int]:
        """Host and port to connect to: a proxy's, if there is one."""
        proxy = self._endpoint.proxy
        if proxy is not None:
            return proxy.host, proxy.port
        return self._connection.host, self._connection.port

    def connect(self, addresses: Sequence[Info] | None = None) -> None:
        """Connect, and shake hands; blocks for at most `connect_s` per address and step.

        *addresses* are those of `next_hop`, in the order in which to try them.
        """
        host, port, proxy = self._connection.host, self._connection.port, self._endpoint.proxy
        try:
            sock = dial(
                resolve(*self.next_hop) if addresses is None else addresses,
                self._config.connect_s,
                only_public=self._object.is_public,
                on_socket=self._adopt,
            )
            self.address = str(sock.getpeername()[0])
            if not self._pace.is_limited:
                widen(sock)
            if isinstance(self._connection, http.client.HTTPSConnection):
                if proxy is not None:
                    tunnel(sock, host, port, proxy)
                tls = self._endpoint.tls
                sock = secure = tls.wrap_socket(
                    sock, server_hostname=host, do_handshake_on_connect=False
                )
                self._adopt(sock)
                secure.do_handshake()
            else:
                sock = WholeSocket.of(sock)
                self._adopt(sock)
        except PrivateAddressError as error:
            raise ChangedError("the origin is at a private address by now") from error
        except (OSError, http.client.HTTPException) as error:  # the latter of a proxy
            if self._socket is not None:
                self._socket.close()
            text = f"cannot connect: {_words(error)}"
            raise TransientError(text, is_nowhere=is_nowhere(error)) from error
        self._connection.sock = sock
        if self._interrupted:
            self.close()

    def take_up(self, connection: http.client.HTTPConnection) -> None:
        """Use a connection that another stream made, and left by `release`."""
        self._connection, self._socket = connection, connection.sock
        self._received = 0, self._came_bytes
        self._is_idle = True
        try:
            self.address = str(self._socket.getpeername()[0])
        except OSError:
            self.address = ""  # it ended while it was idle, as will be seen

    def release(self) -> http.client.HTTPConnection | None:
        """Part with the connection if another stream may use it."""
        is_read = self._reply is not None and self._reply.isclosed()
        if self._interrupted or not is_read or not self.is_connected:
            return None
        self._received = self.received_bytes, 0
        released, self._socket = self._connection, None
        _, self._connection = _connection(self._endpoint)
        return released

    def _adopt(self, sock: socket.socket) -> None:
        """Let `interrupt` reach a socket, even while it connects."""
        self._socket = sock
        if self._interrupted:
            raise InterruptedError(errno.EINTR, "interrupted")

    def close(self) -> None:
        """Close the connection."""
        if self._reply is not None:  # of an origin that hangs up: the connection forgot it
            self._reply.close()
        self._connection.close()

    def interrupt(self) -> None:
        """Make a call that blocks in another thread fail promptly."""
        self._interrupted = True
        self._pace.interrupt()
        if self._socket is not None:
            try:
                # not SSLSocket.shutdown: it would forget the TLS layer under the reading thread
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                return  # closed already, which is what was wanted

    def begin(self, n_bytes: int) -> tuple[int, http.client.HTTPMessage]:
        """Ask for the first *n_bytes* of what nothing is known of; return its size, and the headers.

        Once they tell what it is, `go_on` and `fetch` take what comes. Raises as `fetch` does.
        """
        with self._listening(self._config.first_byte_s):
            reply = self._answer(0, n_bytes)
        said = reply.getheader("Content-Range", "")
        found = re.fullmatch(r"bytes 0-(\d{1,18})/(\d{1,18})", said, re.ASCII)
        if not _is_plain_part(reply) or found is None:
            raise NotFastError(f"status {reply.status}")
        if int(found[1]) + 1 != min(n_bytes, int(found[2])):
            raise NotFastError("another range than was asked for")
        self._is_begun = True
        return int(found[2]), reply.headers

    def go_on(self, obj: Object) -> None:
        """Be for *obj* from here on: the reply that was begun has said what it is."""
        self._object = obj

    def fetch(
        self, claim: Claim, partial: Partial, buffer: memoryview, on_landed: Callable[[int], object]
    ) -> None:
        """Bring what *claim* covers to the disk; what came before a failure stays.

        Calls *on_landed* with each chunk that is whole. A claim that was cut short or beaten
        meanwhile ends without an error, and the connection with it.
        """
        asked = claim.asks()
        self.late_s = None
        touch(buffer)  # http.client copies there what it read of a body with the headers
        began = time.monotonic()
        before_bytes = self.received_bytes
        try:
            if asked is not None:
                with self.time.at(Work.RECEIVING), self._listening(self._config.first_byte_s):
                    reply = self._replied(*asked)
                replied = time.monotonic()
                while length := claim.block(len(buffer)):
                    with self.time.at(Work.RECEIVING), self._listening(self._config.stall_s):
                        self._receive(reply, claim, buffer[:length])
                    with self.time.at(Work.WRITING):
                        _land(claim, partial, buffer, on_landed)
                self.late_s = replied - began
                came_bytes = self.received_bytes - before_bytes
                self.bytes_per_s = came_bytes / (time.monotonic() - replied)
        except TransientError:
            with self.time.at(Work.WRITING):
                _land(claim, partial, buffer, on_landed)
            if claim.asks() is not None:
                raise
            self.close()
        if asked is not None and claim.end < asked[1]:
            self.close()  # the rest of the reply is on its way

    @contextmanager
    def _listening(self, patience_s: float) -> Iterator[None]:
        """Expect something within *patience_s*, and explain what the network does."""
        self._due = time.monotonic() + patience_s
        if self._socket is not None:
            self._socket.settimeout(patience_s)
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"the connection broke off: {_words(error)}") from error
        finally:
            self._due = None

    def _replied(self, start: int, end: int) -> http.client.HTTPResponse:
        """Return the reply that brings these bytes."""
        is_begun, self._is_begun = self._is_begun, False
        reply = self._reply if is_begun else self._answer(start, end)
        assert reply is not None, "begun"
        self._check(reply, start, end)
        return reply

    def _answer(self, start: int, end: int) -> http.client.HTTPResponse:
        headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
        is_idle, self._is_idle = self._is_idle, False
        if is_idle and not self._interrupted and not _is_quiet(self._connection.sock):
            raise StaleError
        try:
            self._connection.request("GET", self._path, headers=headers)
            self._reply = reply = self._connection.getresponse()
        except ConnectionError as error:
            if is_idle and not self._interrupted:
                raise StaleError from error
            raise
        self.pause_s = pause_s(reply.status, reply.headers.get)
        if reply.status in TRANSIENT_STATUS:
            raise unwell(reply.status, reply.headers.get)
        if reply.status in REFUSED_STATUS:
            raise RefusedError(reply.status)
        return reply

    def _check(self, reply: http.client.HTTPResponse, start: int, end: int) -> None:
        if reply.status == 412:
            raise ChangedError("the origin has another version by now")
        validator, size = self._object.validator, self._object.size_bytes
        said = reply.getheader("Content-Range", "")
        if reply.status == 416 and (changed := other_total(said, size)):
            raise changed
        if not _is_plain_part(reply):
            raise NotFastError(f"status {reply.status}")
        if not validator.admits(reply.getheader("ETag"), reply.getheader("Last-Modified")):
            raise ChangedError("the origin has another version by now")
        if said != f"bytes {start}-{end - 1}/{size}":
            if changed := other_total(said, size):
                raise changed
            raise NotFastError("another range than was asked for")
        if reply.length != end - start:
            raise NotFastError("no Content-Length, or a wrong one")

    def _receive(self, reply: http.client.HTTPResponse, claim: Claim, block: memoryview) -> None:
        at = 0
        while want := claim.promise(min(self._piece_bytes, self._pace.piece_bytes)):
            self._due = None  # to be held by a limit is no stall
            self._pace.take(want)
            began = time.monotonic()
            self._due = began + self._config.stall_s * max(1.0, want / PIECE_STALL_BYTES)
            got = self._piece(reply, claim, block[at : at + want])
            at += got
            if got < want:  # the end, or an interruption: `readinto` raises for neither
                raise TransientError("the reply broke off early")
            self._adapt_piece(want, time.monotonic() - began)

    def _piece(self, reply: http.client.HTTPResponse, claim: Claim, piece: memoryview) -> int:
        """Receive a piece; returns how much of it came. Also before a failure that counts."""
        before_bytes, got = self.received_bytes, 0
        claim.coming = lambda: self.received_bytes - before_bytes
        try:
            got = reply.readinto(piece)
        finally:
            got = max(got, self.received_bytes - before_bytes)
            self._received = before_bytes + got, self._came_bytes
            claim.came(got)
        return got

    def _adapt_piece(self, want: int, took_s: float) -> None:
        """Keep pieces small enough on a slow link that each shows it is alive."""
        if took_s > PIECE_SLOW_S:
            self._piece_bytes = max(want // 2, PIECE_MIN_BYTES)
        elif took_s < PIECE_FAST_S and want == self._piece_bytes:
            self._piece_bytes = min(want * 2, PIECE_MAX_BYTES)


def _land(
    claim: Claim, partial: Partial, buffer: memoryview, on_landed: Callable[[int], object]
) -> None:
    """Write what came of a block, and note the chunk that it completes."""
    if (length := claim.settle()) <= 0:
        return
    checksum = crc32c(buffer[:length])
    partial.write(buffer, length, claim.at)
    if (chunk := claim.wrote(length, checksum)) is not None:
        start, end = partial.header.extent(chunk[0])
        partial.record(*chunk, end - start)
        on_landed(chunk[0])


def _connection(endpoint: Endpoint) -> tuple[str, http.client.HTTPConnection]:
    parts = urlsplit(endpoint.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if endpoint.proxy is not None and parts.scheme == "http":
        path = endpoint.url
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, parts.port, context=endpoint.tls)
    else:
        connection = http.client.HTTPConnection(host, parts.port)
    connection.auto_open = 0  # connecting is its own step: guarded, and it can be abandoned
    return path, connection


def _is_plain_part(reply: http.client.HTTPResponse) -> bool:
    return reply.status == 206 and reply.getheader("Content-Encoding", "identity") == "identity"


def _is_quiet(sock: socket.socket) -> bool:
    """Tell whether nothing came unasked, not even the end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError | BlockingIOError):
        return "nothing came in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "the answer is not valid HTTP"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
