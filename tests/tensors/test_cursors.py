"""One image, read from memory, past the page cache or through it: right, or refused by name."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckptd.tensors.copies import PAGE_BYTES, Copy, File
from ckptd.tensors.cursors import Cursor, Sums
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

CHUNK = 1 << 20
SIZE = 4 * CHUNK + 12345
ALL = (1 << 5) - 1


class Image:
    """An image in a file, and perhaps in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = random.Random(7).randbytes(SIZE)
        path.write_bytes(self.data)
        starts = range(0, SIZE, CHUNK)
        crcs = [crc32c(self.data[at : at + CHUNK]) for at in starts]
        self.sums = Sums(SIZE, CHUNK, crcs)
        self.file = File(path, lambda: os.open(path, os.O_RDONLY))
        self.memory: Copy | None = None
        self.shared = 0
        self.told: list[str] = []

    def drop(self) -> None:
        """Have none of the file in the page cache."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(self.near()):
            pytest.skip("needs a disk below the temporary directory")

    def near(self) -> list[bool]:
        """Say of each chunk whether the page cache has it."""
        with closing(File(self.path, lambda: os.open(self.path, os.O_RDONLY))) as file:
            bounds = [self.sums.bounds(chunk) for chunk in range(5)]
            return [file.is_near(start, stop - start) for start, stop in bounds]

    def damage(self, chunk: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(chunk * CHUNK + 100)
            file.write(b"damaged")

    def remember(self, data: bytes) -> None:
        """Have it in memory as *data*, behind a page of something else."""
        fd = os.memfd_create("image")
        os.pwrite(fd, data, PAGE_BYTES)
        self.memory = Copy(fd, PAGE_BYTES)

    def cursor(self) -> Cursor:
        return Cursor(self.sums, self.file, self.memory, self.told.append, self.shared)

    def read(self, *ranges: tuple[int, int]) -> list[bytes]:
        targets = [bytearray(end - start) for start, end in ranges]
        parts = [(at, memoryview(to)) for (at, _), to in zip(ranges, targets, strict=True)]
        self.cursor().fill(parts)
        return [bytes(target) for target in targets]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    made = Image(tmp_path / "image")
    yield made
    made.file.close()
    if made.memory is not None:
        os.close(made.memory.fd)


def to_memory(image: Image) -> None:
    image.remember(image.data)


def to_cache(image: Image) -> None:
    image.path.read_bytes()


def to_share(image: Image) -> None:
    image.drop()
    image.shared = ALL


def to_disk(image: Image) -> None:
    image.drop()


TIERS: dict[str, Callable[[Image], None]] = {
    "memory": to_memory,
    "cached": to_cache,
    "shared": to_share,
    "cold": to_disk,
}


@pytest.mark.parametrize("tier", TIERS)
def test_whatever_is_asked_for_comes_as_it_was_saved(image: Image, tier: str) -> None:
    TIERS[tier](image)
    chance = random.Random(tier)
    for _ in range(20):
        length = chance.choice([1, 5000, CHUNK // 4, CHUNK, 3 * CHUNK])
        starts = sorted(chance.randrange(SIZE) for _ in range(chance.choice([1, 3, 30])))
        ranges = [(start, min(SIZE, start + length)) for start in starts]
        assert image.read(*ranges) == [image.data[start:end] for start, end in ranges]
    assert image.read((0, SIZE)) == [image.data]
    assert not image.told


def test_memory_that_is_not_what_was_saved_is_told_of_once_and_the_file_is_right(
    image: Image,
) -> None:
    image.remember(image.data[:CHUNK] + b"damaged" + image.data[CHUNK + 7 :])
    assert image.read((0, SIZE)) == [image.data]
    assert image.told == [f"the CRC32C of chunk 1 (bytes {CHUNK} to {2 * CHUNK}) is another"]


def test_memory_that_was_given_back_is_told_of_and_the_file_is_right(image: Image) -> None:
    image.remember(image.data[: 2 * CHUNK])
    assert image.read((0, SIZE)) == [image.data]
    assert image.told == ["its memory was given back"]


@pytest.mark.parametrize("tier", ["cached", "shared", "cold"])
@pytest.mark.parametrize("length", [10, CHUNK])
def test_a_damaged_chunk_of_a_file_is_a_loss_that_names_it(
    image: Image, tier: str, length: int
) -> None:
    image.damage(3)
    TIERS[tier](image)
    assert image.read((0, 3 * CHUNK)) == [image.data[: 3 * CHUNK]]
    with pytest.raises(errors.DataLoss, match=f"{image.path} is corrupt in chunk 3"):
        image.read((3 * CHUNK + 200, 3 * CHUNK + 200 + length))


@pytest.mark.parametrize("tier", ["cached", "shared", "cold"])
def test_a_file_that_is_cut_off_is_a_loss(image: Image, tier: str) -> None:
    os.truncate(image.path, 2 * CHUNK + 77)
    TIERS[tier](image)
    with pytest.raises(errors.DataLoss, match=f"cut off at byte {2 * CHUNK + 77}"):
        image.read((2 * CHUNK, 3 * CHUNK))


def test_what_one_process_reads_is_read_past_the_page_cache(image: Image) -> None:
    image.drop()
    image.read((0, SIZE))
    assert image.near() == [False] * 5


def test_what_several_read_is_left_in_the_page_cache_and_nothing_else(image: Image) -> None:
    image.drop()
    image.shared = 0b00110
    image.read((0, SIZE))
    assert image.near() == [False, True, True, False, False]


def test_where_direct_reading_is_refused_it_is_read_as_usual(image: Image) -> None:
    image.drop()
    odd = memoryview(bytearray(CHUNK + 1 + PAGE_BYTES))[1:]  # no disk writes to an odd address
    image.file.read_past(odd, CHUNK, CHUNK)
    assert bytes(odd[:CHUNK]) == image.data[CHUNK : 2 * CHUNK]
