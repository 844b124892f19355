"""The tensors of one file, each as soon as it is here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptd.reading import header
from ckptd.reading.arrival import Arrival
from ckptd.reading.elements import Elements
from ckptd.reading.header import Entry, Header
from ckptd.reading.spans import Span
from ckptd.values import TensorInfo
from ckptd_proto import errors

if TYPE_CHECKING:
    import torch

Want = Callable[[Iterable[Span]], object]


class Tensors:
    """A safetensors object that may still be on its way; see `ckptd.open_tensors`.

    Like a mapping of what was asked for, by name: without `tensors=[…]`, of all the file. `in`, `[]`
    and `names` know what else the file has, too.
    """

    def __init__(
        self,
        arrival: Arrival,
        header: Header,
        asked: Iterable[str] | None,
        *,
        is_whole: bool,
        want: Want,
        device: str,
        timeout: float | None,
    ) -> None:
        """Raises `NotFound` if the file has no tensor that was *asked* for; None asks for all.

        *is_whole* tells whether all of the file is brought, whatever was asked for.
        """
        self._arrival = arrival
        self._header = header
        self._want = want
        self._device = device
        self._timeout = timeout
        self._asks_all = asked is None
        self._is_whole = is_whole
        named = header.tensors if asked is None else asked
        self._asked = {name: self._entry(name) for name in named}
        if not self._asks_all:
            want((entry.start, entry.end) for entry in self._asked.values())

    def __repr__(self) -> str:
        return f"<Tensors [{len(self._header.tensors)}] of {self._arrival.title}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of the file, in its order."""
        return tuple(self._header.tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text that whoever wrote the file put beside the tensors."""
        return self._header.metadata

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor, which need not be here; raises `NotFound`."""
        return self._entry(name).info

    def __contains__(self, name: object) -> bool:
        return name in self._header.tensors

    def __len__(self) -> int:
        return len(self._asked)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> tuple[str, ...]:
        """Return the names of what was asked for; waits for nothing."""
        return tuple(self._asked)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor; see `get`."""
        return self.get(name)

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor, in memory of its own, once its bytes are here; they are fetched first.

        Raises:
            NotFound: The file has no tensor of this name.
            DeadlineExceeded: It has not arrived within the `timeout` that was given on opening.
            DataLoss, Aborted: What arrived is damaged, or the object changed: none of it counts.
        """
        entry = self._entry(name)
        return self._read(name, entry)

    def slice(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows `[start:stop]` of a tensor's first dimension, and fetch only these.

        Raises what `get` does, and `InvalidArgument` if there are no such rows.
        """
        entry = self._entry(name)
        rows = entry.info.shape[0] if entry.info.shape else 0
        if not 0 <= start <= stop <= rows:
            text = f"tensor {name!r} has {rows} rows; [{start}:{stop}] is not within them"
            raise errors.InvalidArgument(text)
        row_bytes = entry.info.size_bytes // max(1, rows)
        size_bytes = (stop - start) * row_bytes
        info = replace(
            entry.info, shape=(stop - start, *entry.info.shape[1:]), size_bytes=size_bytes
        )
        at = entry.start + start * row_bytes
        return self._read(name, Entry(info, at, at + size_bytes))

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor that was asked for, with its name, as they arrive."""
        pending = list(self._asked.items())
        while pending:
            spans = [(entry.start, entry.end) for _, entry in pending]
            name, entry = pending.pop(self._arrival.wait_any(spans, self._deadline()))
            yield name, self._read(name, entry)

    def wait(self) -> None:
        """Wait until all that was asked for is here: with the whole file, until it is verified.

        Raises what `get` does.
        """
        if self._asks_all:
            self._arrival.wait_published(self._deadline())
        else:
            spans = [(entry.start, entry.end) for entry in self._asked.values()]
            self._arrival.wait_all(spans, self._deadline())

    def _settle(self) -> None:
        if self._is_whole and self._arrival.is_unverified:
            self._arrival.wait_published(self._deadline())
        self._arrival.check()

    def _read(self, name: str, entry: Entry) -> torch.Tensor:
        elements = Elements(name, entry.info)
        span = entry.start, entry.end
        if not self._arrival.has(span):
            self._want([span])
        self._arrival.read(entry.start, elements.view, self._deadline())
        return elements.tensor(self._device)

    def _entry(self, name: str) -> Entry:
        if (entry := self._header.tensors.get(name)) is not None:
            return entry
        text = f"{self._arrival.title} has no tensor {name!r}; `.names` lists what it has"
        raise errors.NotFound(text)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout


def settle(tensors: Tensors) -> None:
    """Wait for the verdict on what *tensors* handed out, if there is to be one; raises as `get`."""
    tensors._settle()


def read_header(arrival: Arrival, want: Want, deadline: float | None) -> Header:
    """Return the header of what arrives, as soon as it is here; raises `DataLoss` if it is none."""
    want([(0, header.PREFIX_BYTES)])
    size_bytes = arrival.wait_begun(deadline).size_bytes
    prefix = bytearray(min(header.PREFIX_BYTES, size_bytes))
    arrival.read(0, memoryview(prefix), deadline)
    length = header.length(prefix, size_bytes, where=arrival.title)
    want([(header.PREFIX_BYTES, header.PREFIX_BYTES + length)])
    text = bytearray(length)
    arrival.read(header.PREFIX_BYTES, memoryview(text), deadline)
    return header.parse(text, size_bytes, where=arrival.title)
