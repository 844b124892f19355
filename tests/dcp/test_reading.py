from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from ckptd.dcp import StorageReader
from ckptd.tensors import described, entries, values
from ckptd_proto import errors

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:.*has no manifest.json"),
]

DTYPES = [
    torch.float32, torch.bfloat16, torch.complex64, torch.bool, torch.int64, torch.uint16,
    torch.float8_e4m3fn,
]  # fmt: skip


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


def bits(tensor: torch.Tensor) -> list[int]:
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def saved(path: Path, state: dict[str, Any], **options: Any) -> Path:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, **options))
    return path


def refusal(path: Path, state: dict[str, Any]) -> str:
    with pytest.raises(CheckpointException) as failure:
        dcp.load(state, storage_reader=StorageReader(path))
    return str(failure.value)


@pytest.mark.parametrize("files", [{}, {"single_file_per_rank": False}, {"thread_count": 3}])
def test_what_torch_itself_has_saved_is_loaded_bit_for_bit(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    raw = torch.randint(0, 2, (3, 40), dtype=torch.uint8)
    tensors = {str(dtype): raw.view(dtype) for dtype in DTYPES}
    tensors |= {
        "zero_d": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(40, 60).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "sliced": torch.randn(10)[::3],
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(5)),
    }
    plain = {"step": 7, "deep": {"x": (2, None)}, "tensor_in_tuple": (torch.arange(3), 1)}
    path = saved(tmp_path / "stock", {"tensors": tensors, "plain": plain}, **files)
    template: dict[str, Any] = {
        "tensors": {name: torch.zeros_like(t).detach() for name, t in tensors.items()},
        "plain": {"step": 0, "deep": {"x": None}, "tensor_in_tuple": None},
    }
    dcp.load(template, storage_reader=StorageReader(path))
    for name, tensor in tensors.items():
        assert bits(template["tensors"][name]) == bits(tensor), name
    assert template["plain"]["deep"] == {"x": (2, None)}
    assert torch.equal(template["plain"]["tensor_in_tuple"][0], torch.arange(3))


def test_another_dtype_is_converted_as_torch_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "stock", {"w": torch.arange(6.0)})
    found = {"w": torch.zeros(6, dtype=torch.float64)}
    dcp.load(found, storage_reader=StorageReader(path))
    assert found["w"].tolist() == list(range(6))


def test_a_directory_without_a_manifest_is_loaded_with_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path / "stock", {"w": torch.ones(2)})
    with pytest.warns(UserWarning, match=r"cannot verify its bytes"):
        dcp.load({"w": torch.zeros(2)}, storage_reader=StorageReader(path))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "stock", {"a": torch.ones(9), "b": torch.ones(9), "o": 1})
    where = pickle.loads((path / ".metadata").read_bytes()).storage_data  # our own bytes
    for name in ("b", "o"):
        info = next(info for index, info in where.items() if index.fqn == name)
        with (path / info.relative_path).open("r+b") as file:
            file.seek(info.offset)
            file.write(b"\xff" * info.length)
    found = {"a": torch.zeros(9)}
    dcp.load(found, storage_reader=StorageReader(path))
    assert torch.equal(found["a"], torch.ones(9))
    assert "cannot be read as plain data" in refusal(path, {"b": torch.zeros(9)})


def test_a_crafted_metadata_runs_nothing(tmp_path: Path, trace: Path) -> None:
    path = saved(tmp_path / "stock", {"w": torch.ones(2), "step": 1})
    good = pickle.loads((path / ".metadata").read_bytes())
    index = MetadataIndex("w", torch.Size([0]))
    crafted: list[Any] = [
        Runs(trace),
        Metadata({"w": Runs(trace)}, {}, good.storage_data),
        Metadata(good.state_dict_metadata, Runs(trace), good.storage_data),
        Metadata(good.state_dict_metadata, {}, {index: Runs(trace)}),
        Metadata(good.state_dict_metadata, {}, good.storage_data, Runs(trace)),
    ]
    for each in crafted:
        (path / ".metadata").write_bytes(pickle.dumps(each))
        said = refusal(path, {"w": torch.zeros(2)})
        assert "does not belong into a .metadata" in said
        assert not trace.exists()
    pickle.loads(pickle.dumps(Runs(trace)))
    assert trace.exists()  # it would have run


@pytest.mark.parametrize("where", ["/etc/passwd", "../other/__0_0.distcp", "a/../../b"])
def test_a_metadata_that_points_elsewhere_is_refused(tmp_path: Path, where: str) -> None:
    path = saved(tmp_path / "stock", {"w": torch.ones(2)})
    found = pickle.loads((path / ".metadata").read_bytes())
    found.storage_data = {index: _StorageInfo(where, 0, 8) for index in found.storage_data}
    (path / ".metadata").write_bytes(pickle.dumps(found))
    assert "points outside of its directory" in refusal(path, {"w": torch.zeros(2)})


def tar_and_pickle(trace: Path) -> bytes:
    """Return what torch's loader takes for a tar archive first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        data = pickle.dumps(Runs(trace))
        info = tarfile.TarInfo("storages")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_with(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
    return out.getvalue()


def legacy_with(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


@pytest.mark.parametrize("way", ["zip", "legacy", "tar", "pickle"])
@pytest.mark.parametrize("name", ["step", "w"])
def test_a_crafted_entry_runs_nothing(tmp_path: Path, trace: Path, way: str, name: str) -> None:
    path = saved(tmp_path / "stock", {"w": torch.ones(2), "step": 1})
    data = {
        "zip": zip_with(pickle.dumps(Runs(trace), protocol=2)),
        "legacy": legacy_with(Runs(trace)),
        "tar": tar_and_pickle(trace),
        "pickle": pickle.dumps(Runs(trace)),
    }[way]
    found = pickle.loads((path / ".metadata").read_bytes())
    found.storage_data = {
        index: _StorageInfo("crafted", 0, len(data)) if index.fqn == name else info
        for index, info in found.storage_data.items()
    }
    (path / ".metadata").write_bytes(pickle.dumps(found))
    (path / "crafted").write_bytes(data)
    template = {"w": torch.zeros(2)} if name == "w" else {"step": 0}
    assert "would run code" in refusal(path, template)
    assert not trace.exists()


def test_a_planner_is_given_bytes_of_ours_whatever_the_file_has(tmp_path: Path) -> None:
    path = saved(tmp_path / "stock", {"step": 7})

    class Own(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            assert value.getvalue() == values.encode("step", 7)
            super().load_bytes(read_item, value)

    found = {"step": 0}
    dcp.load(found, storage_reader=StorageReader(path), planner=Own())
    assert found == {"step": 7}


def test_an_entry_that_is_not_there_as_described_is_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "stock", {"w": torch.ones(2)})
    found = pickle.loads((path / ".metadata").read_bytes())
    (file,) = {info.relative_path for info in found.storage_data.values()}
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[: len(whole) // 2])
    assert "cut off" in refusal(path, {"w": torch.zeros(2)})
    (path / file).unlink()
    assert "is missing" in refusal(path, {"w": torch.zeros(2)})
    (path / ".metadata").unlink()
    with pytest.raises(errors.NotFound, match=r"neither manifest\.json nor \.metadata"):
        StorageReader(path).read_metadata()


def test_a_reader_that_nobody_has_told_where_says_so() -> None:
    with pytest.raises(errors.InvalidArgument, match="checkpoint_id"):
        StorageReader().read_metadata()


def test_a_tensor_that_claims_more_than_it_has_is_refused() -> None:
    whole = io.BytesIO()
    torch.save(torch.ones(4), whole)
    with zipfile.ZipFile(whole) as archive:
        top = archive.namelist()[0].partition("/")[0]
        pickled = archive.read(f"{top}/data.pkl")
    assert pickled.count(b"K\x04\x85") == 1  # the shape (4,)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickled.replace(b"K\x04\x85", b"K\x09\x85"))
        archive.writestr("a/data/0", struct.pack("<4f", 1, 1, 1, 1))
    with pytest.raises(pickle.UnpicklingError, match="beyond its elements"):
        entries.describe(out, "f", 0)


_GOOD = pickle.dumps(
    Metadata({}, {"a": ("a", 0)}, {MetadataIndex("a"): _StorageInfo("f", 0, 1)}, version="1.0.0")
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_whatever_a_metadata_is_it_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_GOOD)
    for at, byte in changes:
        data[at] = byte
    try:
        found = described.decode(bytes(data))
    except Exception:  # noqa: BLE001  any: the reader makes it one of ours
        return
    assert isinstance(found, Metadata)
