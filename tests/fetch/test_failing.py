"""A failure has one name, reaches everyone who shares it, and is not asked for again at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd import errors
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.running import ckptd
from fakes.waiting import eventually

CALLERS = 8


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """A daemon that remembers failures for longer than any test takes."""
    with Daemon(short_path, failure_s=600, revalidate_s=0, retries=0) as running:
        yield running


def failure(daemon: Daemon, url: str, sha256: str | None = None) -> errors.CkptdError:
    with pytest.raises(errors.CkptdError) as caught:
        daemon.client().fetch(url, sha256=sha256)
    return caught.value


def test_all_waiters_get_one_error_with_one_id_which_is_in_the_log(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).lasting = Fault.TRUNCATE
    origin.hold()
    found: list[errors.CkptdError] = []
    crowd = [
        threading.Thread(target=lambda: found.append(failure(daemon, origin.url("model"))))
        for _ in range(CALLERS)
    ]
    for thread in crowd:
        thread.start()
    eventually(lambda: [f.waiters for f in daemon.client().status().flights] == [CALLERS])
    origin.release()
    for thread in crowd:
        thread.join(30)
    assert len(found) == CALLERS
    (id_,) = {error.id for error in found}
    assert id_
    assert all(id_ in str(error) for error in found)
    assert id_ in daemon.log_text()


def test_only_where_bytes_are_here_are_any_said_to_be_kept(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("none", data).lasting = Fault.HANG_UP
    file = origin.put("some", data)
    file.faults = [Fault.NONE, *[Fault.HANG_UP] * 100]
    with Daemon(short_path, retries=0, streams=1, streams_max=1) as daemon:
        assert "kept" not in str(failure(daemon, origin.url("none")))
        said = str(failure(daemon, origin.url("some")))
    assert "what was fetched is kept, try again" in said


def test_who_asks_right_after_a_failure_gets_it_without_the_origin_being_asked(
    daemon: Daemon, origin: Origin
) -> None:
    first = failure(daemon, origin.url("gone"))
    asked = len(origin.requests)
    again = failure(daemon, origin.url("gone"))
    assert (type(again), again.id) == (errors.NotFound, first.id)
    assert "was not asked again" in str(again)
    assert len(origin.requests) == asked


def test_a_failed_transfer_is_not_begun_again_at_once(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).lasting = Fault.TRUNCATE
    first = failure(daemon, origin.url("model"))
    bodies = len(origin.bodies("model"))
    assert failure(daemon, origin.url("model")).id == first.id
    assert len(origin.bodies("model")) == bodies


def test_a_failure_is_forgotten_in_time(short_path: Path, origin: Origin) -> None:
    with Daemon(short_path, failure_s=0) as daemon:
        first = failure(daemon, origin.url("late"))
        origin.put("late", b"here now")
        assert daemon.client().fetch(origin.url("late")).read_bytes() == b"here now"
    assert first.id


def test_other_credentials_are_asked_for_anew(daemon: Daemon, origin: Origin) -> None:
    signed = "X-Amz-{}=1&" * 6
    names = ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"]
    query = signed.format(*names)
    file = origin.put("model", b"data")
    file.faults = [Fault.FORBID] * 16
    refused = failure(daemon, origin.url(f"model?{query}X-Amz-Security-Token=old"))
    assert isinstance(refused, errors.PermissionDenied)
    file.faults.clear()
    path = daemon.client().fetch(origin.url(f"model?{query}X-Amz-Security-Token=new"))
    assert path.read_bytes() == b"data"


def test_a_hash_that_a_caller_stated_wrongly_is_no_failure_of_the_object(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    wrong = failure(daemon, origin.url("model"), sha256="0" * 64)
    assert isinstance(wrong, errors.DataLoss)
    assert wrong.id in str(wrong)
    assert daemon.client().fetch(origin.url("model")).read_bytes() == b"data"


def test_the_command_tells_the_id(daemon: Daemon, origin: Origin) -> None:
    first = failure(daemon, origin.url("gone"))
    done = ckptd("fetch", origin.url("gone"), "--json", env=daemon.env)
    assert done.returncode == 3
    assert f'"id": "{first.id}"' in done.stderr
