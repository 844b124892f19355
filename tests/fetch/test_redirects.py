"""Redirects: signatures that expire, other hosts, and an origin that is away for a while."""

from __future__ import annotations

from pathlib import Path

import pytest
from anyio import to_thread

from ckptd_daemon.transfer.progress import Cause, Phase
from ckptd_proto import errors
from fakes.node import FETCH_S, clean
from fakes.origin import Fault, Origin
from fakes.waiting import until

CHUNK_BYTES = 16 << 20


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("uses", [2, 3])
async def test_a_signature_that_expires_midway_is_asked_for_anew(
    uses: int, status: int, short_path: Path, origin: Origin, data: bytes
) -> None:
    content = data * 3
    origin.put("signed", content)
    origin.sign("model", "signed", uses=uses, status=status)
    async with clean(short_path, origin, streams=2, streams_max=2) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == content
    assert origin.sent_bytes <= len(content) + 2 * 2 * CHUNK_BYTES


@pytest.mark.parametrize(
    ("status", "error"), [(401, errors.Unauthenticated), (403, errors.PermissionDenied)]
)
async def test_signatures_that_are_never_good_are_a_typed_error_without_them(
    status: int, error: type[errors.CkptdError], short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("signed", data)
    origin.sign("model", "signed", uses=0, status=status)
    async with clean(short_path, origin) as node:
        with pytest.raises(error, match=str(status)) as caught:
            await node.fetch(origin.url("model"))
        assert "Signature" not in str(caught.value)
        assert node.entries("partials") == []


async def test_another_host_brings_the_bytes_that_a_redirect_names(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    with Origin() as elsewhere:
        elsewhere.put("real", data).faults = [Fault.TRUNCATE, Fault.UNAVAILABLE]
        origin.redirect("model", elsewhere.url("real").replace("127.0.0.1", "localhost"))
        async with clean(short_path, origin, elsewhere) as node:
            assert (await node.fetch(origin.url("model"))).read_bytes() == data
        assert elsewhere.bodies("real")


async def test_a_slash_at_the_end_of_another_name_is_a_redirect_like_any_other(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("files/model/", data)
    origin.redirect("model", "/files/model/")
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data


async def test_where_a_redirect_leads_to_wants_a_pause_that_is_told_and_holds_up_no_other_question(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BORNE_S", 0.0)  # the first refusal is final
    with Origin() as cdn:
        busy = cdn.put("busy", b"")
        busy.question_faults, busy.retry_after_s = [Fault.THROTTLE], 5
        cdn.put("real", data)
        origin.redirect("model", cdn.url("real"))
        origin.put("small", b"small")
        async with clean(short_path, origin, cdn, retries=0, streams=1) as node:
            with pytest.raises(errors.Unavailable):
                await node.fetch(cdn.url("busy"))
            with node.calling(origin.url("model")) as call:
                await until(lambda: "left alone" in call.progress().reason)
                progress = call.progress()
                assert (progress.cause, progress.phase) == (Cause.THROTTLED, Phase.WAITING)
                assert f"http://127.0.0.1:{cdn.port}" in progress.reason
                assert (await node.fetch(origin.url("small"))).read_bytes() == b"small"
                assert call.progress().cause is Cause.THROTTLED
                assert await call.wait(FETCH_S)
                assert call.result().path.read_bytes() == data


async def test_an_origin_that_refuses_connections_for_a_while_costs_time_only(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.RESET] * 8
    async with clean(short_path, origin, retries=1000) as node:
        origin.refuse()
        with node.calling(origin.url("model")) as call:
            while "cannot be reached" not in call.progress().reason:
                assert not await call.wait(0.01)
            await to_thread.run_sync(origin.accept)
            assert await call.wait(FETCH_S)
        assert call.result().path.read_bytes() == data


async def test_an_origin_that_refuses_connections_for_good_is_unavailable(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.refuse()
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.Unavailable, match=r"given up after 3 tries .*refused"):
            await node.fetch(origin.url("model"))
