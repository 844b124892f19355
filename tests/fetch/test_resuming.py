"""After kill -9 a chunk per stream is fetched again at most, and never a byte of two versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.origin import OLD, File, Origin, just_now
from fakes.partials import CHUNK_BYTES, landed_bytes
from fakes.waiting import eventually

STREAMS = 3
YEAR_2000 = "Sat, 01 Jan 2000 00:00:00 GMT"


@pytest.fixture(scope="module")
def content(data: bytes) -> bytes:
    """Ten chunks."""
    return data * 4


@pytest.fixture(scope="module")
def other_content(other_data: bytes) -> bytes:
    """As long, and different."""
    return other_data * 4


@contextmanager
def killed_half_way(
    daemon: Daemon, origin: Origin, content: bytes
) -> Iterator[tuple[Path, Future[Path]]]:
    """While the daemon is dead: the partial that it left, and the fetch that waits for the next.

    After the block the daemon is back.
    """
    origin.hold(after_bytes=len(content) // 2)
    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(daemon.client().fetch, origin.url("model"), timeout=40)
        assert origin.held.wait(30)
        (partial,) = (daemon.state_dir / "cache" / "partials").iterdir()
        half = len(content) // 2  # was sent; the disk may take its time
        eventually(lambda: landed_bytes(partial) >= half - STREAMS * CHUNK_BYTES)
        daemon.kill()
        yield partial, fetch
        origin.release()
        daemon.start()


@pytest.mark.parametrize("etag", ['"v1"', None], ids=["strong", "date_alone"])
def test_what_landed_before_a_kill_is_not_fetched_again(
    etag: str | None, short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content, etag=etag, last_modified=OLD)
    with Daemon(short_path, streams=STREAMS, streams_max=STREAMS) as daemon:
        with killed_half_way(daemon, origin, content) as (partial, fetch):
            assert landed_bytes(partial) >= len(content) // 2 - STREAMS * CHUNK_BYTES
        assert fetch.result().read_bytes() == content
    assert origin.sent_bytes <= len(content) + STREAMS * CHUNK_BYTES + 2  # asked for its version


def cut(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[:-5])


def cut_in_the_first_line(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[:40])


def empty(journal: Path) -> None:
    journal.write_bytes(b"")


def claims_everything(journal: Path) -> None:
    line, _, records = journal.read_bytes().partition(b"\n")
    journal.write_bytes(line + b"\n" + records * 4 + b"\0" * 24)


def spoil_the_data(journal: Path) -> None:
    with journal.with_name("data").open("r+b") as file:
        file.write(b"not what was written here")


def lose_the_data(journal: Path) -> None:
    journal.with_name("data").unlink()


def halve_the_data(journal: Path) -> None:
    data = journal.with_name("data")
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 4 + 77)


DAMAGES = [
    cut,
    cut_in_the_first_line,
    empty,
    Path.unlink,
    claims_everything,
    spoil_the_data,
    lose_the_data,
    halve_the_data,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_whatever_became_of_the_partial_the_bytes_are_right(
    damage: Callable[[Path], object], short_path: Path, origin: Origin, content: bytes
) -> None:
    origin.put("model", content)
    with Daemon(short_path, streams=STREAMS, streams_max=STREAMS) as daemon:
        with killed_half_way(daemon, origin, content) as (partial, fetch):
            damage(partial / "journal")
        assert fetch.result().read_bytes() == content


@pytest.mark.parametrize(
    ("etag", "modified", "new_etag", "new_modified"),
    [
        ('"v1"', OLD, '"v2"', OLD),
        ('"v1"', None, '"v2"', None),
        ('W/"v1"', OLD, 'W/"v2"', OLD),
        (None, OLD, None, YEAR_2000),
    ],
    ids=["strong", "etag_alone", "weak_and_date", "date_alone"],
)
def test_a_version_that_comes_while_the_daemon_is_dead_is_fetched_from_its_start(
    etag: str | None,
    modified: str | None,
    new_etag: str | None,
    new_modified: str | None,
    short_path: Path,
    origin: Origin,
    content: bytes,
    other_content: bytes,
) -> None:
    origin.put("model", content, etag=etag, last_modified=modified, ignores_match=True)
    with Daemon(short_path, streams=STREAMS, streams_max=STREAMS) as daemon:
        with killed_half_way(daemon, origin, content) as (_, fetch):
            new = File(other_content, new_etag, new_modified, ignores_match=True)
            origin.serve("model", new)
        assert fetch.result().read_bytes() == other_content


@pytest.mark.parametrize(
    ("etag", "modified"),
    [('W/"same"', lambda: None), (None, just_now), (None, lambda: None)],
    ids=["weak", "just_modified", "none"],
)
def test_what_no_version_vouches_for_is_not_gone_on_with_after_a_kill(
    etag: str | None,
    modified: Callable[[], str | None],
    short_path: Path,
    origin: Origin,
    content: bytes,
    other_content: bytes,
) -> None:
    names = {"etag": etag, "last_modified": modified()}
    origin.put("model", content, **names)
    with Daemon(short_path, streams=STREAMS, streams_max=STREAMS) as daemon:
        with killed_half_way(daemon, origin, content) as (partial, fetch):
            origin.put("model", other_content, **names)  # nobody can tell
            before = origin.sent_bytes
        assert not partial.exists()
        assert fetch.result().read_bytes() == other_content
    assert origin.sent_bytes - before >= len(other_content)
