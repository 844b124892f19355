"""What goes out for a request: plain values, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus

from fakes.origin.faults import Fault
from fakes.origin.files import FIRST_BYTE, File, just_now

HEADERS_TOO_LONG = "x" * 300_000
BOUNDARY = "part"
REFUSED = {
    Fault.UNAVAILABLE: 503,
    Fault.OVERLOADED: 529,
    Fault.CUT_OFF: 522,
    Fault.UNABLE: 501,
    Fault.UNAUTHORIZED: 401,
    Fault.FORBID: 403,
    Fault.LOSE: 404,
}
"""By a status that says it all."""
WHOLE = {Fault.NO_RANGES, Fault.NO_LENGTH, Fault.OVERLONG, Fault.UNFRAMED}


class Ending(Enum):
    """What happens once the body is out."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    STALL = auto()


@dataclass(frozen=True)
class Request:
    name: str
    query: str
    headers: dict[str, str]

    @property
    def asked(self) -> str | None:
        return self.header("Range")

    def header(self, name: str) -> str | None:
        found = (value for key, value in self.headers.items() if key.lower() == name.lower())
        return next(found, None)

    @staticmethod
    def parse(head: bytes) -> Request:
        line, *fields = head.decode("latin-1").split("\r\n")
        target = line.split(" ")[1]
        path, _, query = target.partition("?")
        pairs = (field.partition(":") for field in fields if field)
        headers = {name.strip(): value.strip() for name, _, value in pairs}
        return Request(path.lstrip("/"), query, headers)


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: memoryview | bytes = b""
    ending: Ending = Ending.KEEP
    pause_s: float = 0.0
    """After every single byte, if not 0."""
    bytes_per_s: float = 0.0
    """Of the body, if not 0."""
    first_byte_s: float = 0.0
    """Before anything is said."""
    http: str = "HTTP/1.1"
    is_chunked: bool = False

    def head(self) -> bytes:
        if not self.is_chunked and self.http == "HTTP/1.1" and self.status != 204:
            self.headers.setdefault("Content-Length", str(len(self.body)))
        lines = [f"{self.http} {self.status} {_reason(self.status)}", f"Date: {just_now()}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "Whatever"


def reply_to(request: Request, file: File, fault: Fault | None) -> Reply:
    """What *file* is answered with, done wrong by *fault*."""
    if (refused := _refusal(request, file, fault)) is not None:
        return refused
    expected = request.header("If-Match")
    if expected is not None and expected != file.etag and not file.ignores_match:
        return Reply(412)
    if fault is Fault.OVERLONG and request.asked == FIRST_BYTE:
        fault = None  # the question for the size is answered as it should be
    if request.asked is None or fault in WHOLE:
        reply = _whole(file)
    else:
        reply = _part(file, request.asked, fault)
    return reply if reply.status == 416 else _spoilt(_described(reply, file), file, fault)


def _refusal(request: Request, file: File, fault: Fault | None) -> Reply | None:
    if fault is not None and (status := REFUSED.get(fault)):
        return Reply(status)
    match fault:
        case Fault.THROTTLE:
            return Reply(429, {"Retry-After": str(file.retry_after_s)})
        case Fault.THROTTLE_UNTIL:
            return Reply(429, {"Retry-After": just_now(file.retry_after_s)})
        case Fault.UNSATISFIABLE:
            return Reply(416, {"Content-Range": f"bytes */{len(file.data)}"})
        case Fault.LOOP:
            return Reply(302, {"Location": f"/{request.name}"})
        case Fault.GARBAGE:
            return Reply(200, http="!garbage!", body=b"what is this")
        case Fault.LONG_HEADERS:
            return Reply(200, {"X-Long": HEADERS_TOO_LONG})
        case Fault.HANG_UP:
            return Reply(0, ending=Ending.CLOSE)
        case Fault.MUTE:
            return Reply(0, ending=Ending.STALL)
    return None


def _whole(file: File) -> Reply:
    return Reply(200, body=memoryview(file.data))


def _part(file: File, asked: str, fault: Fault | None) -> Reply:
    """The range *asked* for, as `bytes=START-[END]`."""
    size = len(file.data)
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    assert found is not None, asked
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if start >= size:
        return Reply(416, {"Content-Range": f"bytes */{size}"})
    if fault is Fault.NO_TAIL and start:
        return Reply(416)
    if fault is Fault.OTHER_RANGE:
        start, end = max(0, start - 1), max(1, end - 1)
    total = size + (fault is Fault.OTHER_TOTAL)
    label = f"bytes {start}-{end - 1}/{'*' if fault is Fault.NO_TOTAL else total}"
    body = memoryview(file.data)[start:end]
    match fault:
        case Fault.LABELLED_200:
            return Reply(200, body=body)
        case Fault.NO_LABEL:
            return Reply(206, body=body)
        case Fault.LONGER:
            return Reply(206, {"Content-Range": label}, bytes(body) + b"and more")
        case Fault.SHORTER:
            return Reply(206, {"Content-Range": label}, body[: len(body) // 2])
        case Fault.MULTIPART:
            kind = f"multipart/byteranges; boundary={BOUNDARY}"
            return Reply(206, {"Content-Type": kind}, _multipart(label, body))
    return Reply(206, {"Content-Range": label}, body)


def _multipart(label: str, body: memoryview) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Range: {label}\r\n\r\n".encode()
    return head + body + f"\r\n--{BOUNDARY}--\r\n".encode()


def _described(reply: Reply, file: File) -> Reply:
    if file.etag is not None:
        reply.headers["ETag"] = file.etag
    if file.last_modified is not None:
        reply.headers["Last-Modified"] = file.last_modified
    reply.headers |= file.headers
    reply.bytes_per_s, reply.first_byte_s = file.bytes_per_s, file.first_byte_s
    return reply


def _spoilt(reply: Reply, file: File, fault: Fault | None) -> Reply:
    """*reply* as *fault* has it go over the wire."""
    half = len(reply.body) // 2
    match fault:
        case Fault.GZIP:
            reply.headers["Content-Encoding"] = "gzip"
        case Fault.NO_LENGTH:
            reply.headers["Transfer-Encoding"] = "chunked"
            reply.is_chunked = True
        case Fault.OVERLONG:
            reply.headers["Transfer-Encoding"] = "chunked"
            reply.is_chunked = True
            reply.body = bytes(reply.body) + b"!"
        case Fault.UNFRAMED:
            reply.http, reply.ending = "HTTP/1.0", Ending.CLOSE
        case Fault.ONE_SHOT:
            reply.headers["Content-Length"] = str(len(reply.body))
            reply.http, reply.ending = "HTTP/1.0", Ending.CLOSE
        case Fault.CORRUPT if reply.body:
            wrong = bytearray(reply.body)
            wrong[half] ^= 0xFF
            reply.body = bytes(wrong)
        case Fault.SURPLUS if len(reply.body) > 1:
            reply.headers["Content-Length"] = str(len(reply.body))
            reply.body = bytes(reply.body) + b"and more"
        case Fault.DRIBBLE:
            reply.pause_s = file.dribble_s
        case Fault.TRUNCATE | Fault.RESET | Fault.STALL:
            reply.headers["Content-Length"] = str(len(reply.body))
            reply.body = reply.body[:half]
            endings = {Fault.TRUNCATE: Ending.CLOSE, Fault.RESET: Ending.RESET}
            reply.ending = endings.get(fault, Ending.STALL)
    return reply
