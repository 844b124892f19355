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
from ckptd_proto import errors


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


class Failing(Data):
    """Whose reading takes as long as it takes for it to fail."""

    def __init__(self, arrival: Arrival, fd: int, size_bytes: int) -> None:
        super().__init__(fd, size_bytes)
        self._arrival = arrival

    def read(self, start: int, into: memoryview) -> None:
        super().read(start, into)
        self._arrival.fail(errors.DataLoss("damaged"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    return path


def test_what_was_read_while_it_failed_does_not_count(path: Path) -> None:
    arrival = Arrival("model")
    arrival.open("key", Failing(arrival, os.open(path, os.O_RDONLY), 100))
    arrival.land([(0, 100)])
    with pytest.raises(errors.DataLoss, match="damaged"):
        arrival.read(0, memoryview(bytearray(10)), None)


def test_once_something_was_here_only_the_same_may_be_opened_again(path: Path) -> None:
    arrival = Arrival("model")
    for key in ("other", "key"):
        arrival.open(key, Data(os.open(path, os.O_RDONLY), 100))
    arrival.land([(0, 100)])
    arrival.open("key", Data(os.open(path, os.O_RDONLY), 100))
    with pytest.raises(errors.Aborted, match="changed while it was read"):
        arrival.open("other", Data(os.open(path, os.O_RDONLY), 100))


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
