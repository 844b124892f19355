"""Tensors are read while their file is still on its way, and only what is right is handed out."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import anyio
import grpc
import pytest
import torch
from safetensors.torch import load, save

import ckptd
from ckptd import aio, errors
from ckptd.values import Progress
from ckptd_proto.v1 import blobs_pb2
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.waiting import eventually

CHUNK_BYTES = 16 << 20
ROWS = 5
NAMES = [f"layer.{index:02d}" for index in range(12)]


@pytest.fixture(scope="session")
def model() -> bytes:
    """Four chunks: twelve tensors of 5 MiB, one behind the other."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randint(0, 256, (ROWS, 1 << 20), dtype=torch.uint8, generator=generator)
        for name in NAMES
    }
    return save(tensors, metadata={"format": "pt", "step": "7"})


@pytest.fixture(scope="session")
def expected(model: bytes) -> dict[str, torch.Tensor]:
    return load(model)


@pytest.fixture
def one_stream(short_path: Path) -> Iterator[Daemon]:
    """A daemon that fetches one range after the other."""
    with Daemon(short_path, streams=1, streams_max=1, linger_s=0) as daemon:
        yield daemon


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunks_of(ranges: list[str | None]) -> list[int]:
    """The chunks that were asked for, in the order in which they were."""
    found = []
    for asked in ranges:
        assert asked is not None
        start, _, end = asked.removeprefix("bytes=").partition("-")
        found += range(int(start) // CHUNK_BYTES, int(end) // CHUNK_BYTES + 1)
    return found


def test_the_header_and_the_first_tensors_are_here_while_the_rest_is_not(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=CHUNK_BYTES + (1 << 20))
    with one_stream.client().open_tensors(origin.url("model"), timeout=30) as tensors:
        assert origin.sent_bytes < len(model) // 2
        assert tensors.names == tuple(NAMES)
        assert tensors.metadata == {"format": "pt", "step": "7"}
        info = tensors.info(NAMES[-1])
        assert (info.dtype, info.shape, info.size_bytes) == ("U8", (ROWS, 1 << 20), ROWS << 20)
        assert torch.equal(tensors[NAMES[0]], expected[NAMES[0]])
        assert torch.equal(tensors[NAMES[2]], expected[NAMES[2]])
        assert origin.held.wait(30)
        origin.release()
        read = dict(tensors.items())
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in NAMES)


def test_of_a_file_in_the_cache_everything_is_here_at_once(
    daemon: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    client = daemon.client()
    client.fetch(origin.url("model"))
    sent_bytes = origin.sent_bytes
    with client.open_tensors(origin.url("model"), offline=True) as tensors:
        tensors.wait()
        assert torch.equal(tensors["layer.07"], expected["layer.07"])
    assert origin.sent_bytes == sent_bytes


def test_a_local_file_needs_no_daemon(
    short_path: Path, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    path = short_path / "model.safetensors"
    path.write_bytes(model)
    with ckptd.open_tensors(path, tensors=["layer.03"], sha256=sha256(model)) as tensors:
        ((name, tensor),) = tensors.items()
        assert name == "layer.03"
        assert torch.equal(tensor, expected["layer.03"])
    with (
        pytest.raises(errors.DataLoss, match="SHA-256"),
        ckptd.open_tensors(path, sha256="0" * 64),
    ):
        pass


def test_where_a_hash_is_known_tensors_wait_for_it_unless_they_are_asked_for_early(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), f"{origin.url('model')}#sha256={sha256(model)}"
    with client.open_tensors(url, verify="transport", timeout=30) as early:
        assert torch.equal(early[NAMES[0]], expected[NAMES[0]])
        with pytest.raises(errors.DeadlineExceeded), client.open_tensors(url, timeout=0.3):
            pytest.fail("it was opened")
        origin.release()
    with client.open_tensors(url, offline=True) as late:
        assert torch.equal(late[NAMES[0]], expected[NAMES[0]])
    (blob,) = client.blobs()
    assert blob.verification == "sha256"


def test_early_tensors_of_a_file_that_fails_in_the_end_do_not_count(
    one_stream: Daemon, origin: Origin, model: bytes
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), origin.url("model")
    with (
        pytest.raises(errors.DataLoss, match="checksum"),
        client.open_tensors(url, sha256="0" * 64, verify="transport", timeout=30) as tensors,
    ):
        tensors[NAMES[0]]
        origin.release()
    for access in (tensors.wait, lambda: tensors[NAMES[0]], lambda: [*tensors.items()]):
        with pytest.raises(errors.DataLoss, match="checksum"):
            access()
    assert client.blobs() == []


def test_a_wrong_hash_that_another_caller_states_does_not_disturb_a_reader(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), origin.url("model")
    stated = {"sha256": "0" * 64, "verify": "transport"}
    with (
        pytest.raises(errors.DataLoss, match=r"checksum|SHA-256"),
        client.open_tensors(url, **stated, timeout=30) as mistaken,
    ):
        mistaken[NAMES[0]]
        with client.open_tensors(url, timeout=30) as tensors:
            assert torch.equal(tensors[NAMES[0]], expected[NAMES[0]])
            origin.release()
            read = dict(tensors.items())
    assert all(torch.equal(read[name], expected[name]) for name in NAMES)


def test_early_tensors_of_bytes_that_were_damaged_once_do_not_count_though_the_file_is_right(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model, faults=[Fault.CORRUPT])
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), f"{origin.url('model')}#sha256={sha256(model)}"
    with (
        pytest.raises(errors.DataLoss, match="damaged on its way"),
        client.open_tensors(url, verify="transport", timeout=30) as tensors,
    ):
        assert tensors.names == tuple(NAMES)
        origin.release()
    with client.open_tensors(url, timeout=30) as tensors:
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("wrong", [b"", b"another"], ids=["right", "wrong"])
def test_where_the_store_states_a_checksum_early_tensors_must_be_asked_for(
    one_stream: Daemon, origin: Origin, model: bytes, wrong: bytes
) -> None:
    digest = base64.b64encode(hashlib.sha256(wrong or model).digest()).decode()
    origin.put("model", model, headers={"Repr-Digest": f"sha-256=:{digest}:"})
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), origin.url("model")
    verdict = pytest.raises(errors.DataLoss) if wrong else nullcontext()
    with verdict, client.open_tensors(url, verify="transport", timeout=30) as early:
        early[NAMES[0]]
        with pytest.raises(errors.DeadlineExceeded), client.open_tensors(url, timeout=0.3):
            pytest.fail("it was opened")
        origin.release()
    verdict = pytest.raises(errors.DataLoss) if wrong else nullcontext()
    with verdict, client.open_tensors(url) as late:
        late[NAMES[0]]


def test_an_object_that_changes_under_way_is_aborted_for_everyone(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    changed = model[:-1] + bytes([model[-1] ^ 1])
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = one_stream.client(), origin.url("model")
    with (
        pytest.raises(errors.Aborted, match="changed while it was read; open it again"),
        client.open_tensors(url, timeout=30) as one,
        client.open_tensors(url) as other,
    ):
        assert torch.equal(one[NAMES[0]], expected[NAMES[0]])
        assert torch.equal(other[NAMES[1]], expected[NAMES[1]])
        origin.put("model", changed, etag='"v2"')
        origin.release()
        for tensors in (one, other):
            with pytest.raises(errors.Aborted, match="changed while it was read"):
                list(tensors.items())
            with pytest.raises(errors.Aborted, match="changed while it was read"):
                tensors[NAMES[0]]
    with client.open_tensors(url) as tensors:
        last = tensors[NAMES[-1]]
    assert torch.equal(last, load(changed)[NAMES[-1]])
    assert not torch.equal(last, expected[NAMES[-1]])


@pytest.mark.parametrize(
    "file",
    [
        {"etag": 'W/"v1"', "last_modified": None},
        {"lasting": Fault.NO_RANGES},
        {"lasting": Fault.NO_LENGTH},
    ],
    ids=["weak version", "no ranges", "no length"],
)
def test_what_cannot_be_joined_from_ranges_is_read_once_it_is_whole(
    daemon: Daemon,
    origin: Origin,
    model: bytes,
    expected: dict[str, torch.Tensor],
    file: dict[str, object],
) -> None:
    origin.put("model", model, **file)
    with daemon.client().open_tensors(origin.url("model"), timeout=30) as tensors:
        assert torch.equal(tensors["layer.11"], expected["layer.11"])


def test_of_a_version_that_promises_nothing_no_byte_is_read_before_all_are_here(
    daemon: Daemon, origin: Origin, model: bytes
) -> None:
    origin.put("model", model, etag='W/"v1"', last_modified=None)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    client, url = daemon.client(), origin.url("model")
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(client.fetch, url, timeout=30)
        eventually(lambda: any(f.done_bytes > CHUNK_BYTES for f in client.status().flights))
        with pytest.raises(errors.DeadlineExceeded), client.open_tensors(url, timeout=0.3):
            pytest.fail("it was opened")
        origin.release()
        assert fetching.result().read_bytes() == model


def test_a_daemon_tells_nothing_of_the_next_version_to_who_has_read_of_the_last(
    one_stream: Daemon, origin: Origin, model: bytes
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    opening = blobs_pb2.ReadOpen(ref=origin.url("model"), whole=True)
    requests = iter([blobs_pb2.ReadRequest(open=opening)])
    events = one_stream.client().connection.call(lambda stubs: stubs.blobs.Read(requests))
    kinds = (event.WhichOneof("event") for event in events)
    assert "landed" in kinds  # read as far as that
    origin.put("model", model[::-1], etag='"v2"')
    origin.release()
    with pytest.raises(grpc.RpcError, match="changed while it was read"):
        assert set(kinds) <= {"landed", "progress"}
    assert events.code() is grpc.StatusCode.ABORTED


def test_a_killed_daemon_goes_on_and_its_readers_do_not_notice(
    short_path: Path, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=5 * CHUNK_BYTES // 2)
    with Daemon(short_path, streams=1, streams_max=1) as daemon:
        with daemon.client().open_tensors(origin.url("model"), timeout=30) as tensors:
            in_second_chunk = NAMES[5]
            assert torch.equal(tensors[in_second_chunk], expected[in_second_chunk])
            assert origin.held.wait(30)
            daemon.kill()
            origin.release()
            daemon.start()
            read = dict(tensors.items())
            tensors.wait()
        eventually(lambda: [blob.leases for blob in daemon.client().blobs()] == [0])
    assert all(torch.equal(read[name], expected[name]) for name in NAMES)
    assert origin.sent_bytes <= len(model) + CHUNK_BYTES  # half a chunk, and what nobody read


READ = """
import sys, ckptd
with ckptd.open_tensors(sys.argv[1]) as tensors:
    tensors[tensors.names[0]]
    print("reading", flush=True)
    sums = {name: int(tensor.sum()) for name, tensor in tensors.items()}
    tensors.wait()
print(sorted(sums.items()), flush=True)
"""


def readers(daemon: Daemon, url: str, count: int) -> list[subprocess.Popen[str]]:
    """Processes that have read the first tensor when this returns, and go on."""
    command = [sys.executable, "-c", READ, url]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=daemon.env, text=True)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
    return processes


def test_processes_share_one_transfer_and_one_that_is_killed_disturbs_nobody(
    one_stream: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    victim, other = readers(one_stream, origin.url("model"), 2)
    victim.kill()
    victim.communicate(timeout=30)
    origin.release()
    output, _ = other.communicate(timeout=30)
    assert output.strip() == str(sorted((name, int(expected[name].sum())) for name in NAMES))
    assert origin.sent_bytes == len(model) + 1
    eventually(lambda: one_stream.client().blobs()[0].leases == 0)


def test_a_file_that_is_cut_off_or_lies_is_refused(daemon: Daemon, origin: Origin) -> None:
    origin.put("empty", b"")
    origin.put("short", b"\x08\x00\x00\x00")
    origin.put("cut", save({"a": torch.arange(100)})[:-1])
    origin.put("huge", (1 << 62).to_bytes(8, "little") + b"{}")
    for name in ("empty", "short", "cut", "huge"):
        with pytest.raises(errors.DataLoss), daemon.client().open_tensors(origin.url(name)):
            pass


def test_tensors_are_like_a_mapping_of_what_was_asked_for(daemon: Daemon, origin: Origin) -> None:
    origin.put("model", save({"a": torch.arange(4), "b": torch.tensor(7)}))
    client, url = daemon.client(), origin.url("model")
    with client.open_tensors(url) as tensors:
        assert (list(tensors), len(tensors)) == (["a", "b"], 2)
        assert {name: int(one.sum()) for name, one in dict(tensors).items()} == {"a": 6, "b": 7}
    with client.open_tensors(url, tensors=["b"]) as tensors:
        assert (list(tensors), len(tensors), dict(tensors)) == (["b"], 1, {"b": torch.tensor(7)})
        assert ("a" in tensors, tensors.names) == (True, ("a", "b"))
    with (
        pytest.raises(errors.InvalidArgument, match="single name 'b'; give a sequence"),
        client.open_tensors(url, tensors="b"),
    ):
        pass


def test_what_is_not_there_is_said(daemon: Daemon, origin: Origin) -> None:
    origin.put("model", save({"a": torch.arange(4), "0d": torch.tensor(7)}))
    client, url = daemon.client(), origin.url("model")
    with pytest.raises(errors.NotFound, match="no tensor 'b'"), client.open_tensors(url) as tensors:
        assert "a" in tensors
        assert "b" not in tensors
        tensors["b"]
    with pytest.raises(errors.NotFound), client.open_tensors(url, tensors=["b"]):
        pass
    with pytest.raises(errors.NotFound), client.open_tensors(origin.url("none")):
        pass
    with pytest.raises(errors.InvalidArgument, match="name one file of it"):
        client.open_tensors(origin.url("directory/")).__enter__()
    with (
        pytest.raises(errors.InvalidArgument, match='give "transport"'),
        client.open_tensors(url, verify="sha256"),
    ):
        pass
    with client.open_tensors(url) as tensors:
        assert tensors.slice("a", 1, 3).tolist() == [1, 2]
        assert tensors.slice("a", 4, 4).tolist() == []
        for name, start, stop in (("a", 0, 5), ("a", 3, 2), ("a", -1, 2), ("0d", 0, 1)):
            with pytest.raises(errors.InvalidArgument, match="rows"):
                tensors.slice(name, start, stop)


def test_nothing_is_read_outside_the_block(daemon: Daemon, origin: Origin) -> None:
    origin.put("model", save({"a": torch.arange(4)}))
    with daemon.client().open_tensors(origin.url("model")) as tensors:
        pass
    with pytest.raises(errors.FailedPrecondition, match="inside the block"):
        tensors["a"]


FORK = """
import os, sys, ckptd
with ckptd.open_tensors(sys.argv[1]) as tensors:
    first, *_, last = tensors.names
    if os.fork() == 0:
        print(tensors[first].numel(), flush=True)
        try:
            tensors[last]
        except ckptd.errors.FailedPrecondition as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_forked_child_reads_what_is_here_and_does_not_wait_for_more(
    one_stream: Daemon, origin: Origin, model: bytes
) -> None:
    origin.put("model", model)
    origin.hold(after_bytes=2 * CHUNK_BYTES)
    command = [sys.executable, "-W", "ignore", "-c", FORK, origin.url("model")]
    process = subprocess.run(
        command, stdout=subprocess.PIPE, env=one_stream.env, text=True, timeout=50, check=True
    )
    size, words = process.stdout.splitlines()
    assert int(size) == ROWS << 20
    assert "start it with multiprocessing's `spawn`" in words


async def test_tensors_can_be_awaited(
    daemon: Daemon, origin: Origin, model: bytes, expected: dict[str, torch.Tensor]
) -> None:
    origin.put("model", model)
    told: list[Progress] = []
    client, url = aio.Client(daemon.socket), origin.url("model")
    async with client.open_tensors(url, on_progress=told.append) as tensors:
        assert torch.equal(await tensors.get("layer.11"), expected["layer.11"])
        assert torch.equal(await tensors.slice("layer.11", 1, 2), expected["layer.11"][1:2])
        read = {name: tensor async for name, tensor in tensors.items()}
        await tensors.wait()
    assert all(torch.equal(read[name], expected[name]) for name in NAMES)
    assert told
    assert (await client.blobs())[0].leases == 0


async def test_cancelling_ends_a_wait_for_tensors_and_holds_nothing(
    daemon: Daemon, origin: Origin, model: bytes
) -> None:
    origin.put("model", model)
    origin.hold()
    client = aio.Client(daemon.socket)
    with anyio.move_on_after(0.5) as scope:
        async with client.open_tensors(origin.url("model")):
            raise AssertionError("nothing is here")
    assert scope.cancelled_caught
    assert (await client.status()).cache.leases == 0
