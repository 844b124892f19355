from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd_daemon.save.arena import slots
from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.commit.proof import CHUNK_BYTES
from ckptd_daemon.save.images import unchanged
from ckptd_daemon.save.places import Place
from ckptd_daemon.store import durable
from ckptd_proto.crc import crc32c

SIZE = CHUNK_BYTES + (100 << 10) + 5
PAGE = 4096


def content(size: int) -> bytes:
    return bytes(range(251)) * (size // 251 + 1)


def sums(data: bytes, **other: object) -> bytes:
    crcs = [crc32c(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    record = {"format": 1, "size_bytes": len(data), "chunk_bytes": CHUNK_BYTES, "crc32c": crcs}
    return json.dumps(record | other).encode()


class World:
    """A committed image, and memory that may hold the same."""

    def __init__(self, top: Path, size: int = SIZE) -> None:
        self.earlier, self.directory = top / "step-1", top / "attempt"
        self.earlier.mkdir()
        self.directory.mkdir()
        self.image = Image("i", size)
        self.data = content(size)[:size]
        self.write(self.data, sums(self.data))

    def write(self, data: bytes, sums: bytes) -> None:
        (self.earlier / "i").write_bytes(data)
        (self.earlier / "i.sums").write_bytes(sums)

    def link(
        self, staged: bytes | None = None, *, is_mapped: bool = True, cut: int = 0
    ) -> list[int] | None:
        """Offer *staged*, or the same bytes, and check that what is linked is the same."""
        size = PAGE * 2 + -(-self.image.size_bytes // PAGE) * PAGE
        slot = slots.create(self.directory, size, is_mapped=is_mapped)
        try:
            os.pwrite(slot.fd, staged or self.data, PAGE)
            os.ftruncate(slot.fd, size - cut)
            crcs = unchanged.link(self.image, slot, PAGE, self.earlier, self.directory)
        finally:
            slot.destroy()
        linked = self.directory / "i"
        assert linked.exists() == (crcs is not None)
        assert crcs is None or linked.samefile(self.earlier / "i")
        return crcs


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_same_bytes_get_a_second_name_and_the_same_checksums(world: World) -> None:
    assert world.link() == json.loads(sums(world.data))["crc32c"]


@settings(max_examples=25, deadline=None)
@given(st.integers(64 << 10, SIZE), st.data())
def test_one_byte_that_differs_is_found_wherever_it_is(size: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as top:
        world = World(Path(top), size)
        staged = bytearray(world.data)
        staged[data.draw(st.integers(0, size - 1))] ^= 1
        for is_mapped in (True, False):
            assert world.link(bytes(staged), is_mapped=is_mapped) is None
            assert world.link(is_mapped=is_mapped) is not None
            (world.directory / "i").unlink()


@pytest.mark.parametrize("is_mapped", [True, False])
def test_memory_that_a_process_has_cut_is_no_image(world: World, is_mapped: bool) -> None:
    assert world.link(is_mapped=is_mapped, cut=SIZE) is None


def test_checksums_alone_are_not_believed(world: World) -> None:
    for at in (0, CHUNK_BYTES, SIZE - 1):
        damaged = bytearray(world.data)
        damaged[at] ^= 1
        world.write(bytes(damaged), sums(world.data))
        assert world.link() is None


@pytest.mark.parametrize(
    "other",
    [b"", b"[]", b'{"format": 1}', sums(b"x"), sums(content(SIZE)[:SIZE], format=2),
     sums(content(SIZE)[:SIZE], crc32c=[])],
)  # fmt: skip
def test_an_image_of_which_too_little_is_known_is_left_alone(world: World, other: bytes) -> None:
    world.write(world.data, other)
    assert world.link() is None
    (world.earlier / "i.sums").unlink()
    assert world.link() is None


def test_a_longer_or_shorter_file_is_another(world: World) -> None:
    for data in (world.data + b"x", world.data[:-1]):
        world.write(data, sums(world.data))
        assert world.link() is None


def test_a_symbolic_link_is_not_followed(world: World, tmp_path: Path) -> None:
    (world.earlier / "i").rename(tmp_path / "elsewhere")
    (world.earlier / "i").symlink_to(tmp_path / "elsewhere")
    assert world.link() is None


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EIO, errno.ENOENT])
def test_what_cannot_be_linked_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(src: Path, dst: Path, **_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    assert world.link() is None


def test_what_is_replaced_while_it_is_looked_at_is_not_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(src: Path, dst: Path) -> None:
        dst.write_bytes(b"another")

    monkeypatch.setattr(durable, "link", replaced)
    assert world.link() is None


def test_small_images_are_written(tmp_path: Path) -> None:
    assert World(tmp_path, 1000).link() is None


def test_the_newest_committed_step_before_is_looked_at(tmp_path: Path) -> None:
    place = Place(tmp_path, "e", "r")
    assert unchanged.earlier_step(place, 9) is None
    for step in (1, 5, 7, 10):
        place.step(step).mkdir(parents=True)
    for step in (1, 5, 10):
        (place.step(step) / "manifest.json").touch()
    assert unchanged.earlier_step(place, 9) == place.step(5)
    assert unchanged.earlier_step(place, 1) is None


def test_a_reader_past_the_cache_copes_with_what_the_filesystem_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = os.preadv, []

    def refuses(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1 and durable.fcntl.fcntl(fd, durable.fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return true(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuses)
    assert world.link() is not None


def test_a_disk_that_fails_to_read_has_it_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "preadv", fails)
    assert world.link() is None
