from __future__ import annotations

import codecs
import datetime
import io
import pickle
import random
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckptd.tensors import values
from ckptd_proto import errors


def shown(value: Any) -> str:
    return (hex(value) if type(value) is int else repr(value))[:40]


KEEPS = [
    None, True, 0, -1, 2**31, 2**200, 1.5, -0.0, float("nan"), float("inf"), 1 + 2j, "", "ä\ud800",
    b"", bytes(range(256)), bytearray(b"ab"), (), (1, "a", None), [1, [2, (3,)]], {"a": {1: 2}},
    {1, 2}, frozenset({"x"}), range(3), slice(1, 2), OrderedDict(b=1, a=2),
    torch.Size([1, 2]), torch.float8_e5m2, torch.device("cpu"), (torch.arange(3), 1),
    datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
    datetime.timedelta(1, 2), Path("/x/y"),
    np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 2), np.uint8),
    np.array(["a", "bc"]), np.array(1.5), np.float32(1.5), np.int64(-3), np.bool_(True),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), np.dtype("float32"), np.array([np.nan]),
    np.datetime64("2026-01-01"), np.str_("x"),
    np.array([1, "a", [2]], dtype=object), np.zeros((2, 3), "V5"), np.dtype("M8[25s]"), np.dtype("O"),
    np.zeros(2, np.dtype([("a", "i1"), ("b", "f8", (2,))], align=True)), np.datetime64("NaT", "ns"),
    np.dtype({"names": ["x"], "formats": ["<i2"], "offsets": [3], "itemsize": 9}), torch.strided,
    (torch.ones(2, 3).t(), torch.ones(2, dtype=torch.complex64).conj(), torch.zeros(0, 3)),
    (torch.ones(1).expand(4), [nn.Parameter(torch.ones(1))]),
    Counter("aab"), {1: frozenset()}, 2**3000, -(2**20000), datetime.date(2026, 1, 2), 1j, bytearray(),
    datetime.time(1, 2), datetime.timezone(datetime.timedelta(hours=1), "x"),
    random.getstate(), np.random.get_state(), np.random.default_rng(0).bit_generator.state,
]  # fmt: skip


@pytest.mark.parametrize("value", KEEPS, ids=shown)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    restored = values.decode(values.encode("k", value))
    assert values.same(value, restored)
    assert type(value) is type(restored)


def test_a_tensor_of_a_newer_dtype_inside_a_value_comes_back() -> None:
    value = (torch.ones(3, dtype=torch.uint16),)
    assert values.same(value, values.decode(values.encode("k", value)))


@pytest.mark.parametrize("value", KEEPS, ids=shown)
def test_stock_torch_reads_a_value_as_it_was(value: Any) -> None:
    data = io.BytesIO(values.encode("k", value))
    assert values.same(value, torch.load(data, weights_only=False))


class Own:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)

    __hash__ = None  # type: ignore[assignment]  # not hashable, like most user classes


class Runs:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


Point = namedtuple("Point", "x y")
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


class Words(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        Own(), Point(1, 2), lambda: 0, object, defaultdict(list), deque([1]), Words("x"),
        (1, {"a": Own()}), np.array([Own()], dtype=object), np.array([1], ">i4"), ENDLESS, nn.Linear(1, 1),
        torch.Generator(), {Own: 1}, iter([]), Runs(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_would_not_come_back_is_refused_by_its_key(
    value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        values.encode("trainer.hook", value)
    assert "'trainer.hook'" in str(caught.value)
    assert "state_dict()" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_loading_runs_no_code_that_the_file_brings(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.BytesIO()
    torch.save(Runs(), out, _use_new_zipfile_serialization=False)
    with pytest.raises(UnpicklingError, match="print is no plain data"):
        values.decode(out.getvalue())
    assert capsys.readouterr().out == ""


class Asks:
    """Pickles as a call of *make*, and a state to build it with."""

    def __init__(self, make: Any, *arguments: Any, state: Any = None) -> None:
        self._reduced = (make, arguments) if state is None else (make, arguments, state)

    def __reduce__(self) -> Any:
        return self._reduced


def array(shape: Any, dtype: Any, data: Any) -> Asks:
    reconstruct = np.zeros(0).__reduce__()[0]
    return Asks(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


def pointers() -> Asks:
    fields = {"a": (np.dtype("O"), 0)}
    return Asks(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), fields, 8, 1, 0))


class Storage:
    def __init__(self, kind: Any, count: int) -> None:
        self.id = ("storage", kind, "0", "cpu", count, None)


def viewed(count: int, offset: int, size: Any, stride: Any) -> Asks:
    rebuild, storage = torch._utils._rebuild_tensor_v2, Storage(torch.FloatStorage, count)
    return Asks(rebuild, storage, offset, size, stride, False, OrderedDict())


def pickled(value: Any) -> bytes:
    """Return what a liar writes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.id if isinstance(obj, Storage) else None

    out = io.BytesIO()
    torch.save(0, out, _use_new_zipfile_serialization=False)
    head = io.BytesIO(out.getvalue())
    for _ in range(3):
        pickle.load(head)
    data = io.BytesIO()
    data.write(out.getvalue()[: head.tell()])
    Pickler(data, protocol=2).dump(value)
    data.write(pickle.dumps([], protocol=2))
    return data.getvalue()


MEGABYTE = "x" * (1 << 20)


@pytest.mark.parametrize(
    "value",
    [
        array((1,), pointers(), (0x41414141).to_bytes(8, "little")),
        array((1,), np.dtype("O"), b"\1" * 8), array((3,), np.dtype("O"), [1]),
        array((1 << 40,), np.dtype("i1"), b"a"), array((-1, -1), np.dtype("i1"), b"a"),
        array((1 << 40,), np.dtype("V0"), b""), array((1,), "i1", b"a"),
        Asks(np.dtype, "V2000000000"), Asks(np.dtype, [("a", "O")]), Asks(np.dtype, "i4,O"),
        Asks(np.dtype, {"names": ["a"], "formats": [np.dtype("O")], "offsets": [0], "itemsize": 8}),
        Asks(np.float64(0).__reduce__()[0], np.dtype("O"), b"\1" * 8),
        Asks(np.float64(0).__reduce__()[0], np.dtype("f8"), b"\1"),
        Asks(frozenset, range(10**12)), Asks(set, range(10**12)), Asks(bytes, 10**12),
        Asks(bytearray, 10**12), Asks(bytearray, range(10**12)), Asks(Counter, range(10**12)),
        Asks(OrderedDict, range(10**12)), Asks(torch.Size, range(10**12)), Asks(complex, MEGABYTE),
        [Asks(codecs.encode, MEGABYTE, "latin1") for _ in range(100)],
        Asks(codecs.encode, "x", "hex"), Asks(torch.Tensor, 10**12), Asks(np.ndarray, (10**12,)),
        Asks(datetime.datetime, b"\x07\xea\x01\x02\xff\xff\xff\xff\xff\xff"),
        viewed(10**12, 0, (1,), (1,)), viewed(1, 0, (2,), (1,)), viewed(1, 9, (1,), (1,)),
        viewed(1, 0, (1 << 40, 1 << 40), (0, 0)), viewed(1, 0, (1,), (1,)), viewed(4, 3, (2,), (-1,)),
        Asks(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1,), (1,), False),
        Asks(torch.Tensor, state=(1, 2)), Asks(getattr, "x", "y"), print, torch.load,
    ],
)  # fmt: skip
def test_bytes_that_ask_for_pointers_or_for_more_memory_than_they_are_worth_are_refused(
    value: Any,
) -> None:
    data = pickled(value)
    tracemalloc.start()
    try:
        with pytest.raises((UnpicklingError, ValueError, TypeError)):
            values.decode(data)
        assert tracemalloc.get_traced_memory()[1] < (8 << 20) + 8 * len(data)
    finally:
        tracemalloc.stop()


def test_a_memo_with_a_huge_number_takes_no_memory() -> None:
    data = pickled(1).replace(pickle.dumps(1, 2), b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    assert values.decode(data) == 1


def test_reading_a_value_leaves_the_safe_globals_of_the_process_alone() -> None:
    with torch.serialization.safe_globals([datetime.datetime, bytes]):
        values.encode("k", (datetime.datetime.now(datetime.UTC), b"", np.ones(1)))
        assert set(torch.serialization.get_safe_globals()) >= {datetime.datetime, bytes}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=50),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_values_come_back_whatever_they_are(value: Any) -> None:
    assert values.same(value, values.decode(values.encode("k", value)))


@given(PLAIN, PLAIN)
def test_fingerprints_tell_different_values_apart(left: Any, right: Any) -> None:
    assert (values.fingerprint(left) == values.fingerprint(right)) == (
        repr(left) == repr(right) and type(left) is type(right)
    )


@pytest.mark.parametrize(
    ("left", "right"), [(1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ("a", b"a")]
)
def test_values_that_python_calls_equal_are_told_apart(left: Any, right: Any) -> None:
    assert not values.same(left, right)


def test_a_counter_that_grows_keeps_its_place() -> None:
    lengths = {len(values.encode("step", step)) for step in (0, 255, 256, 65536, 2**31, 2**60)}
    assert len(lengths) == 1


def test_the_fingerprint_of_a_set_does_not_depend_on_its_order() -> None:
    names = [f"name {i}" for i in range(100)]
    backwards = list(reversed(names))
    assert values.fingerprint(set(names)) == values.fingerprint(set(backwards))
