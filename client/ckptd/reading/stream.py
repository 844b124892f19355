"""The daemon's word on what has landed, followed by a thread for as long as somebody reads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckptd.fetching import OnProgress, progress_of
from ckptd.link import calls, forks
from ckptd.reading.arrival import Arrival, Data
from ckptd.reading.spans import Span, Spans
from ckptd_proto import errors
from ckptd_proto.v1 import blobs_pb2

if TYPE_CHECKING:
    from ckptd.link.connection import Connection, Stubs

HANDOVER_TRIES = 3
SPANS_PER_MESSAGE = 4096

_Requests = queue.SimpleQueue[blobs_pb2.ReadRequest | None]  # None ends them


class Stream:
    """Brings news of one object to an `Arrival` inside the block, across the daemon's restarts."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        opening: blobs_pb2.ReadOpen,
        arrival: Arrival,
        on_progress: OnProgress | None,
    ) -> None:
        self._connect = connect
        self._opening = opening
        self._arrival = arrival
        self._on_progress = on_progress
        self._calls = calls.current.get() or calls.Calls()  # ends with whoever opens it
        self._thread = threading.Thread(target=self._run, name="ckptd-reading", daemon=True)
        self._lock = threading.Lock()  # guards what follows
        self._wanted = Spans()
        self._requests: _Requests | None = None  # of the call that is open

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._calls.cancel()
        self._thread.join()

    def want(self, spans: Iterable[Span]) -> None:
        """Have these bytes brought before all others."""
        forks.check_usable()
        spans = list(spans)
        with self._lock:
            for start, end in spans:
                self._wanted.add(start, end)
            if self._requests is not None:
                _put(self._requests, spans)

    def _run(self) -> None:
        calls.current.set(self._calls)
        try:
            connection = self._connect()
            for _ in range(HANDOVER_TRIES):
                if connection.call(lambda stubs: self._follow(connection, stubs)):
                    return
            text = f"the daemon handed no file over {HANDOVER_TRIES} times; look at its log"
            raise errors.Unavailable(text)
        except Exception as error:  # noqa: BLE001  raised to whoever waits
            self._arrival.fail(error)

    def _follow(self, connection: Connection, stubs: Stubs) -> bool:
        """Take in news until all is here; False if the daemon went before its file was ours."""
        requests = self._begin()
        events = stubs.blobs.Read(iter(requests.get, None))
        try:
            for event in events:
                match event.WhichOneof("event"):
                    case "opened":
                        try:
                            fd = connection.descriptor(event.opened.token)
                        except (errors.Unavailable, errors.PermissionDenied):
                            return False  # the token was another life's
                        self._open(event.opened, fd)
                    case "landed":
                        self._arrival.land((span.start, span.end) for span in event.landed.spans)
                    case "progress" if self._on_progress is not None:
                        self._on_progress(progress_of(event.progress))
                    case "blob":
                        self._arrival.publish()
                        return True
        finally:
            events.cancel()  # no harm once it has ended
            requests.put(None)
        raise errors.Unavailable("the daemon ended the reading without an answer; open it again")

    def _begin(self) -> _Requests:
        """Return the requests of a new call: what is opened, and all that was wanted so far."""
        requests: _Requests = queue.SimpleQueue()
        requests.put(blobs_pb2.ReadRequest(open=self._opening))
        with self._lock:
            _put(requests, list(self._wanted))
            self._requests = requests
        return requests

    def _open(self, opened: blobs_pb2.ReadOpened, fd: int) -> None:
        data = Data(fd, opened.size_bytes)
        self._arrival.open(opened.key, data, is_unverified=opened.unverified)


def _put(requests: _Requests, spans: list[Span]) -> None:
    for at in range(0, len(spans), SPANS_PER_MESSAGE):
        part = spans[at : at + SPANS_PER_MESSAGE]
        want = blobs_pb2.ReadWant(spans=[blobs_pb2.Span(start=s, end=e) for s, e in part])
        requests.put(blobs_pb2.ReadRequest(want=want))
