"""What a reader takes for one object is one object."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.reading.arrival import Arrival, Data
from ckptd.reading.tensors import read_header


def safetensors(size_bytes: int) -> bytes:
    described = {"t": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}
    header = json.dumps(described).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size_bytes)


class Scripted(threading.Condition):
    """Does the next step, instead of waiting for somebody else to."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        super().__init__()
        self._steps = iter(steps)

    def wait(self, timeout: float | None = None) -> bool:
        next(self._steps)()
        return True


def test_what_is_replaced_before_any_of_it_came_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = safetensors(1000), safetensors(500)
    arrival = Arrival("model")

    def open_(key: str, content: bytes) -> None:
        path = tmp_path / key
        path.write_bytes(content)
        arrival.open(key, Data(os.open(path, os.O_RDONLY), len(content)))

    def change() -> None:
        open_("new", new)
        arrival.land([(0, len(new))])

    monkeypatch.setattr(arrival, "_changed", Scripted(lambda: open_("old", old), change))
    assert read_header(arrival, lambda _: None, None).tensors["t"].info.shape == (500,)
