from __future__ import annotations

import datetime
import random
from collections import OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd.tensors import values
from ckptd_proto import errors

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
    random.getstate(), np.random.get_state(), np.random.default_rng(0).bit_generator.state,
]  # fmt: skip


@pytest.mark.parametrize("value", KEEPS, ids=lambda value: repr(value)[:40])
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    restored = values.decode(values.encode("k", value))
    assert values.same(value, restored)
    assert type(value) is type(restored)


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
        (1, {"a": Own()}), np.array([Own()], dtype=object), np.array([1], ">i4"), ENDLESS, torch.nn.Linear(1, 1),
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
    import io

    out = io.BytesIO()
    torch.save(Runs(), out, _use_new_zipfile_serialization=False)
    with pytest.raises(Exception, match="Weights only load failed"):
        values.decode(out.getvalue())
    assert capsys.readouterr().out == ""


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
