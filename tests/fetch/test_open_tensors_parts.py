"""Only what is asked for is fetched, what is waited for first; all that is read is right."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

import ckptd
from ckptd import errors
from ckptd_proto.v1 import blobs_pb2
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.waiting import eventually

CHUNK_BYTES = 16 << 20
TENSOR_BYTES = 4 << 20
NAMES = [f"layer.{index:02d}" for index in range(16)]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


@pytest.fixture(scope="session")
def model() -> bytes:
    """Five chunks: sixteen tensors of 4 MiB, and one that begins and ends off every border."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randint(0, 256, (4, TENSOR_BYTES // 4), dtype=torch.uint8, generator=generator)
        for name in [*NAMES, "odd"]
    }
    tensors["odd"] = tensors["odd"].flatten()[:12_345].clone()
    return save(tensors)


@pytest.fixture(scope="session")
def expected(model: bytes) -> dict[str, torch.Tensor]:
    return load(model)


@pytest.fixture
def one_stream(short_path: Path) -> Iterator[Daemon]:
    """A daemon that fetches one range after the other, and nothing that nobody waits for."""
    with Daemon(short_path, streams=1, streams_max=1, linger_s=0) as daemon:
        yield daemon


def chunks(origin: Origin) -> list[int]:
    """The chunks that were asked for, in the order in which they were."""
    found: list[int] = []
    for asked in origin.bodies("model"):
        assert asked is not None
        start, _, end = asked.removeprefix("bytes=").partition("-")
        for chunk in range(int(start) // CHUNK_BYTES, int(end) // CHUNK_BYTES + 1):
            if found[-1:] != [chunk]:
                found.append(chunk)
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also of what is not a number."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    views = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*views)


def test_what_is_waited_for_comes_first(one_stream: Daemon, origin: Origin, model: bytes) -> None:
    origin.put("model", model)
    origin.hold()
    client = one_stream.client()
    last = blobs_pb2.Span(start=len(model) - 1, end=len(model))
    opening = blobs_pb2.ReadOpen(ref=origin.url("model"), whole=True)
    are_sent = threading.Event()

    def requests() -> Iterator[blobs_pb2.ReadRequest]:
        yield blobs_pb2.ReadRequest(open=opening)
        yield blobs_pb2.ReadRequest(want=blobs_pb2.ReadWant(spans=[last]))
        are_sent.set()

    events = client.connection.call(lambda stubs: stubs.blobs.Read(requests()))
    assert are_sent.wait(30)
    eventually(lambda: client.status().flights)  # its version is being asked for
    origin.release()
    kinds = [event.WhichOneof("event") for event in events]
    assert chunks(origin) == [4, 0, 1, 2, 3]
    assert [kind for kind in kinds if kind != "progress"][:2] == ["opened", "landed"]
    assert kinds[-1] == "blob"


def test_only_what_is_asked_for_is_fetched_and_the_rest_when_somebody_wants_it(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    client, url = one_stream.client(), origin.url("model")
    with client.open_tensors(url, tensors=["layer.09"], timeout=30) as tensors:
        ((name, tensor),) = tensors.items()
        tensors.wait()
        assert (name, tensors.names) == ("layer.09", tuple(sorted(expected)))
        assert torch.equal(tensor, expected["layer.09"])
        assert chunks(origin) == [0, 2]
        with client.open_tensors(url, tensors=[], timeout=30) as others:
            assert list(others) == []
            assert torch.equal(others["odd"], expected["odd"])
        assert chunks(origin) == [0, 2, 4]
    with client.open_tensors(url, tensors=["odd", "layer.09"], timeout=30) as tensors:
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
        assert chunks(origin) == [0, 2, 4]
        assert client.blobs() == []
        path = client.fetch(url)  # one flight; the reader sees it through
        assert torch.equal(tensors["layer.05"], expected["layer.05"])
    assert path.read_bytes() == model
    assert sorted(chunks(origin)) == [0, 1, 2, 3, 4]
    assert origin.sent_bytes == len(model) + 1


@pytest.mark.parametrize("way", ["argument", "fragment"])
def test_a_stated_hash_is_compared_though_only_some_tensors_are_asked_for(
    way: str,
    one_stream: Daemon,
    origin: Origin,
    model: bytes,
    expected: dict[str, torch.Tensor],
) -> None:
    origin.put("model", model)
    client, url = one_stream.client(), origin.url("model")

    def some(stated: str) -> AbstractContextManager[ckptd.Tensors]:
        ref, sha256 = (f"{url}#sha256={stated}", None) if way == "fragment" else (url, stated)
        names = ["layer.09"]
        return client.open_tensors(
            ref, tensors=names, sha256=sha256, verify="transport", timeout=30
        )

    origin.hold(after_bytes=3 * CHUNK_BYTES + (1 << 20))
    with pytest.raises(errors.DataLoss, match="checksum"), some("0" * 64) as tensors:
        assert torch.equal(tensors["layer.09"], expected["layer.09"])
        tensors.wait()  # for no more than what was asked for
        origin.release()
    assert client.blobs() == []
    with some(hashlib.sha256(model).hexdigest()) as tensors:
        assert torch.equal(tensors["layer.09"], expected["layer.09"])
    (blob,) = client.blobs()
    assert blob.verification == "sha256"


def test_a_part_that_was_fetched_by_an_earlier_life_is_not_fetched_again(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    client, url = one_stream.client(), origin.url("model")
    with client.open_tensors(url, tensors=["layer.09"], timeout=30) as tensors:
        tensors.wait()
        one_stream.kill()
        one_stream.start()
        assert torch.equal(tensors["layer.09"], expected["layer.09"])
        assert torch.equal(tensors["layer.15"], expected["layer.15"])
    assert chunks(origin) == [0, 2, 3, 4]


def test_some_rows_are_fetched_without_the_others(one_stream: Daemon, origin: Origin) -> None:
    rows = torch.arange(12 << 20).reshape(12, 1 << 20)  # 8 MiB each
    origin.put("model", save({"rows": rows}))
    url = origin.url("model")
    with one_stream.client().open_tensors(url, tensors=[], timeout=30) as tensors:
        assert torch.equal(tensors.slice("rows", 6, 8), rows[6:8])
    assert chunks(origin) == [0, 3, 4]


def test_no_byte_is_torn_while_eight_streams_write_and_four_readers_read(
    daemon: Daemon, origin: Origin
) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = random.Random(3)
    expected = {
        f"{index:03d}": torch.randint(
            0, 256, (sizes.randrange(1, 600_000),), dtype=torch.uint8, generator=generator
        )
        for index in range(320)
    }
    origin.put("model", save(expected))
    start = threading.Barrier(4)

    def read(seed: int) -> list[str]:
        names = random.Random(seed).sample(sorted(expected), len(expected))
        with daemon.client().open_tensors(origin.url("model"), timeout=30) as tensors:
            start.wait(30)
            found = tensors.items() if seed == 0 else ((name, tensors[name]) for name in names)
            return [name for name, tensor in found if not torch.equal(tensor, expected[name])]

    with ThreadPoolExecutor(4) as readers:
        torn = list(readers.map(read, range(4)))
    assert torn == [[], [], [], []]


def test_every_dtype_arrives_bit_by_bit(daemon: Daemon, origin: Origin, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for dtype in DTYPES:
        high = 2 if dtype is torch.bool else 256  # not a number, too, and every other bit pattern
        raw = torch.randint(0, high, (60 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        name = str(dtype).removeprefix("torch.")
        tensors[name] = raw.view(dtype).reshape(3, 4, 5)
        tensors[f"{name}.0d"] = raw.view(dtype)[0].clone()
        tensors[f"{name}.empty"] = torch.empty((2, 0, 3), dtype=dtype)
    save_file(tensors, tmp_path / "model")
    origin.put("model", (tmp_path / "model").read_bytes())
    expected = load_file(tmp_path / "model")
    with daemon.client().open_tensors(origin.url("model")) as found:
        read = dict(found)
    assert read.keys() == expected.keys()
    assert [name for name in expected if not same_bits(read[name], expected[name])] == []
    read["float32"] += 1  # writable, and nobody else's
    with ckptd.open_tensors(tmp_path / "model") as found:
        assert all(same_bits(found[name], expected[name]) for name in expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)), max_size=5
    ),
    st.booleans(),
)
def test_every_shape_is_what_safetensors_makes_of_it(
    tmp_path: Path, kinds: list[tuple[torch.dtype, list[int]]], is_reversed: bool
) -> None:
    tensors = {str(at): torch.zeros(shape, dtype=kind) for at, (kind, shape) in enumerate(kinds)}
    save_file(tensors, tmp_path / "model")
    expected = load_file(tmp_path / "model")
    with ckptd.open_tensors(tmp_path / "model") as found:
        names = reversed(found.names) if is_reversed else found.names
        assert {name for name in names if same_bits(found[name], expected[name])} == set(expected)


def test_a_dtype_that_torch_has_not_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    fields = {
        "new": {"dtype": "F99", "shape": [2], "data_offsets": [0, 5]},
        "old": {"dtype": "U8", "shape": [2], "data_offsets": [5, 7]},
    }
    text = json.dumps(fields).encode()
    (tmp_path / "model").write_bytes(len(text).to_bytes(8, "little") + text + b"newer\x01\x02")
    with ckptd.open_tensors(tmp_path / "model") as tensors:
        assert tensors.info("new").dtype == "F99"
        assert tensors["old"].tolist() == [1, 2]
        with pytest.raises(errors.Unimplemented, match="dtype F99"):
            tensors["new"]
