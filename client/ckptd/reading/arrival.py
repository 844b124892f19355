"""The bytes of one object as they arrive: told by whoever brings them, awaited by its readers."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ckptd.link import forks
from ckptd.reading.spans import Span, Spans
from ckptd_proto import errors

T = TypeVar("T")


class Data:
    """A file that grows; its descriptor is closed when nobody reads it any more."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        # what lies beside the bytes that are asked for may be on its way to the disk
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, start: int, into: memoryview) -> None:
        """Fill *into* with the bytes from *start* on; raises `DataLoss` where the file ends."""
        done = 0
        while done < len(into):
            got = os.preadv(self._fd, [into[done:]], start + done)
            if got == 0:
                text = f"the file in the cache ends at byte {start + done}; fetch it again"
                raise errors.DataLoss(text)
            done += got


class Arrival:
    """What is here of one object. Its methods may be called from any thread."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._changed = threading.Condition()  # guards what follows
        self._key = ""
        self._data: Data | None = None
        self._has_landed = False  # anything, in any life of the daemon
        self._is_unverified = False
        self._landed = Spans()
        self._is_published = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Arrival of {self.title} [{self._landed}]>"

    @property
    def is_unverified(self) -> bool:
        """Whether what is here may still prove wrong, when the whole is compared."""
        with self._changed:
            return self._is_unverified and not self._is_published

    def open(self, key: str, data: Data, *, is_unverified: bool = False) -> None:
        """Have what lands from now on read from *data*.

        The object called *key* may be opened again, when another life of the daemon goes on with
        it. Raises `Aborted` if it is another, and something of the first was here.
        """
        with self._changed:
            if self._has_landed and key != self._key:
                text = f"{self.title} changed while it was read; open it again"
                raise errors.Aborted(text)
            self._key, self._data, self._landed = key, data, Spans()
            self._is_unverified = is_unverified
            self._changed.notify_all()

    def land(self, spans: Iterable[Span]) -> None:
        """Tell that these bytes are in the file."""
        with self._changed:
            for start, end in spans:
                self._landed.add(start, end)
            self._has_landed = True
            self._changed.notify_all()

    def publish(self) -> None:
        """Tell that all of it is here, and was verified as far as it can be."""
        with self._changed:
            self._is_published = True
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Tell that it will not come, or that what came does not count."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def close(self) -> None:
        """Wake whoever still waits, and hand out nothing any more."""
        text = f"{self.title} was closed; read its tensors inside the block"
        with self._changed:
            self._failure = self._failure or errors.FailedPrecondition(text)
            self._data = None
            self._changed.notify_all()

    def has(self, span: Span) -> bool:
        """Tell whether all of *span* is here."""
        with self._changed:
            return self._landed.covers(*span)

    def wait_begun(self, deadline: float | None) -> Data:
        """Wait until something is here: before that, another version may take its place."""
        return self._wait(lambda: self._data if self._has_landed else None, deadline)

    def wait_published(self, deadline: float | None) -> None:
        """Wait until all of the object is here, and verified."""
        self._wait(lambda: self._is_published, deadline)

    def wait_all(self, spans: Sequence[Span], deadline: float | None) -> None:
        """Wait until all of *spans* are here."""
        self._wait(lambda: all(self._landed.covers(*span) for span in spans), deadline)

    def wait_any(self, spans: Sequence[Span], deadline: float | None) -> int:
        """Wait until one of *spans* is here; returns which."""

        def landed() -> list[int]:
            found = (index for index, span in enumerate(spans) if self._landed.covers(*span))
            return list(next(([index] for index in found), []))

        return self._wait(landed, deadline)[0]

    def read(self, start: int, into: memoryview, deadline: float | None) -> None:
        """Fill *into* with the bytes from *start* on, each part as soon as it is here."""
        at, end = start, start + len(into)
        while at < end:
            data, upto = self._wait(functools.partial(self._readable, at, end), deadline)
            data.read(at, into[at - start : upto - start])
            at = upto
        self.check()  # what was read of a file that has failed meanwhile does not count

    def check(self) -> None:
        """Raise what went wrong, if something has."""
        with self._changed:
            self._raise_failure()

    def _readable(self, start: int, end: int) -> tuple[Data, int] | None:
        """Return how much of `[start, end)` can be read, and where; None if nothing can."""
        upto = min(end, self._landed.end_of(start))
        return None if self._data is None or upto == start else (self._data, upto)

    def _wait(self, found: Callable[[], T | None], deadline: float | None) -> T:
        """Wait until *found* returns something; raises what went wrong, or `DeadlineExceeded`."""
        with self._changed:
            while True:
                self._raise_failure()
                if value := found():
                    return value
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    text = f"what was asked of {self.title} has not arrived in the given time"
                    raise errors.DeadlineExceeded(f"{text}; ask again, or give it more")
                forks.check_usable()  # nobody brings news to a forked child
                self._changed.wait(left_s)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
