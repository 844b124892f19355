"""Whatever the origin does, the caller gets the right bytes or a typed error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.client import Client
from fakes.daemon import Daemon
from fakes.origin import Fault, File, Origin


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives a silent stream up soon, and believes no answer twice."""
    root = tmp_path_factory.mktemp("d", numbered=True)
    with Daemon(root, stall_s=0.5, retries=2, revalidate_s=0, linger_s=0) as running:
        yield running


@pytest.fixture
def client(hasty: Daemon) -> Client:
    return hasty.client()


def published(daemon: Daemon) -> set[Path]:
    return set((daemon.state_dir / "cache" / "blobs").glob("*/*"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault.NO_RANGES,
        Fault.NO_LENGTH,
        Fault.OTHER_RANGE,
        Fault.LABELLED_200,
        Fault.TRUNCATE,
        Fault.RESET,
        Fault.STALL,
        Fault.THROTTLE,
        Fault.UNAVAILABLE,
    ],
)
def test_a_fault_that_passes_costs_time_and_no_byte(
    fault: Fault, origin: Origin, client: Client, data: bytes
) -> None:
    origin.put("model", data).faults = [fault, fault]
    assert client.fetch(origin.url("model")).read_bytes() == data


@pytest.mark.parametrize("fault", [Fault.NO_RANGES, Fault.NO_LENGTH])
def test_an_origin_without_ranges_or_length_is_read_as_one_stream(
    fault: Fault, origin: Origin, client: Client, data: bytes
) -> None:
    origin.put("model", data).lasting = fault
    assert client.fetch(origin.url("model")).read_bytes() == data
    assert origin.bodies("model") == [None]


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_an_origin_without_strong_versions_is_read_as_one_stream(
    etag: str | None, origin: Origin, client: Client, data: bytes
) -> None:
    origin.put("model", data, etag=etag, last_modified=None)
    assert client.fetch(origin.url("model")).read_bytes() == data
    assert origin.bodies("model") == [None]


def test_an_object_that_changes_midway_is_fetched_anew_and_never_mixed(
    origin: Origin, client: Client, data: bytes, other_data: bytes
) -> None:
    file = origin.put("model", data)
    file.next_version = File(other_data, '"v2"')
    file.faults = [Fault.NONE, Fault.CHANGE]
    assert client.fetch(origin.url("model")).read_bytes() == other_data


def test_an_object_that_keeps_changing_is_an_error(
    origin: Origin, client: Client, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.CHURN] * 1000
    with pytest.raises(errors.Aborted, match="changed 2 times"):
        client.fetch(origin.url("model"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.FORBID, errors.PermissionDenied),
        (Fault.LOSE, errors.NotFound),
        (Fault.GZIP, errors.FailedPrecondition),
        (Fault.THROTTLE, errors.Unavailable),
        (Fault.UNAVAILABLE, errors.Unavailable),
    ],
)
def test_a_fault_that_lasts_is_a_typed_error(
    fault: Fault,
    error: type[errors.CkptdError],
    origin: Origin,
    client: Client,
    data: bytes,
    hasty: Daemon,
) -> None:
    before = published(hasty)
    origin.put("model", data).lasting = fault
    with pytest.raises(error):
        client.fetch(origin.url("model"))
    assert published(hasty) == before


@pytest.mark.parametrize(
    "fault", [Fault.TRUNCATE, Fault.RESET, Fault.STALL, Fault.OTHER_TOTAL, Fault.GZIP, Fault.FORBID]
)
def test_a_fault_of_every_body_is_a_typed_error_and_nothing_is_published(
    fault: Fault, origin: Origin, client: Client, data: bytes, hasty: Daemon
) -> None:
    before = published(hasty)
    origin.put("model", data).faults = [fault] * 1000
    with pytest.raises(errors.CkptdError) as caught:
        client.fetch(origin.url("model"))
    assert not isinstance(caught.value, errors.Internal)
    assert published(hasty) == before


def test_an_empty_object_is_an_empty_file(origin: Origin, client: Client) -> None:
    origin.put("nothing", b"")
    assert client.fetch(origin.url("nothing")).read_bytes() == b""
