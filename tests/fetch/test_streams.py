"""Parallel streams: what they bring first, what a slow or odd one costs, whom they leave alone."""

from __future__ import annotations

import logging
import random
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ckptd import errors
from ckptd_daemon.config import Config
from ckptd_daemon.sources.source import Endpoint, Object, TransientError, Validator
from ckptd_daemon.transfer import stream
from ckptd_daemon.transfer.pace import Flow, Limits, Pacer
from ckptd_daemon.transfer.progress import Cause
from ckptd_daemon.transfer.stream import Stream
from ckptd_daemon.transfer.whole import AHEAD_BYTES, WholeSocket
from fakes.certificates import Authority
from fakes.deaf import deaf
from fakes.node import FETCH_S, clean, fetching
from fakes.origin import Fault, File, Origin
from fakes.origin.files import FIRST_BYTE
from fakes.tls import TlsFront
from fakes.waiting import until


def ranges(origin: Origin, name: str) -> list[tuple[int, int]]:
    """What was asked of *name* as ranges with both ends: by streams."""
    asked = [body.removeprefix("bytes=").split("-") for body in origin.bodies(name) if body]
    return [(int(start), int(end) + 1) for start, end in asked if end]


async def test_where_replies_are_long_in_coming_requests_are_for_more(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).first_byte_s = 0.5
    async with fetching(short_path, streams=8, streams_max=8) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data
    *at_once, last = sorted(ranges(origin, "model"))
    assert [end - start for start, end in at_once] == [4 << 20] * 8
    assert last == (32 << 20, len(data))


async def test_pieces_come_whole_though_the_network_brings_them_in_parts(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, reads = WholeSocket.recv_into, list[tuple[int, int]]()

    def noted(sock: WholeSocket, buffer: memoryview) -> int:
        got = receive(sock, buffer)
        reads.append((len(buffer), got))
        return got

    monkeypatch.setattr(WholeSocket, "recv_into", noted)
    origin.put("model", data)
    async with fetching(short_path, streams=2, streams_max=2) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data
    long = [read for read in reads if read[0] > AHEAD_BYTES]
    assert sum(got for _, got in long) > 0.9 * len(data)
    assert all(got == asked for asked, got in long)


@pytest.mark.parametrize("limit", [None, 1 << 30])
async def test_much_is_on_its_way_from_the_start_unless_a_limit_is_to_hold_it(
    limit: int | None, short_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    widened: list[object] = []
    monkeypatch.setattr(stream, "widen", widened.append)
    origin.put("model", b"content")
    async with fetching(short_path, max_bytes_per_s=limit) as node:
        await node.fetch(origin.url("model"))
    assert bool(widened) is (limit is None)


async def test_one_connection_that_dribbles_does_not_hold_up_the_end(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.NONE, Fault.DRIBBLE]
    async with fetching(short_path, stall_s=600) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data
    assert origin.has_sent_once(len(data))
    assert len(ranges(origin, "model")) > 3


async def test_one_connection_that_says_nothing_does_not_hold_up_the_end(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.NONE, Fault.MUTE]
    async with fetching(short_path, stall_s=600, first_byte_s=600) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data


async def test_a_stall_costs_only_what_did_not_come_and_no_retry(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.STALL] * 3
    async with fetching(short_path, retries=0) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data
    assert origin.has_sent_once(len(data))


@pytest.mark.parametrize("size_bytes", [1 << 20, 40 << 20], ids=["small", "big"])
@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (Fault.MUTE, {"first_byte_s": 0.5, "stall_s": 600}),
        (Fault.STALL, {"first_byte_s": 600, "stall_s": 0.5}),
    ],
    ids=["does not begin", "stops"],
)
async def test_a_reply_that_does_not_begin_and_one_that_stops_have_a_time_of_their_own(
    fault: Fault,
    waits: dict[str, float],
    size_bytes: int,
    short_path: Path,
    origin: Origin,
    data: bytes,
) -> None:
    file = origin.put("model", data[:size_bytes])
    file.faults = [fault]
    alone = {"streams": 1, "streams_max": 1}  # nobody helps
    async with clean(short_path, origin, **alone, **waits) as node:
        with anyio.fail_after(20):
            assert (await node.fetch(origin.url("model"))).read_bytes() == file.data
    assert len(ranges(origin, "model")) == len(origin.bodies("model")) > 1, "streams brought it"


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.TRUNCATE, Fault.MUTE])
async def test_what_happens_to_a_connection_may_happen_below_tls(
    short_path: Path, origin: Origin, data: bytes, fault: Fault
) -> None:
    authority = Authority(short_path / "authority")
    file = origin.put("model", data)
    file.faults = [fault] * 3
    with TlsFront(origin, authority) as front:
        async with clean(short_path, front, ca_file=authority.file) as node:
            assert (await node.fetch(front.url("model"))).read_bytes() == data
    assert file.faults == []
    assert len(ranges(origin, "model")) > 3, "streams brought it"


async def test_who_leaves_a_silent_tls_connection_keeps_no_thread(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    authority = Authority(short_path / "authority")
    origin.put("model", data).faults = [Fault.STALL] * 100
    patient = {"stall_s": 600, "first_byte_s": 600, "ca_file": authority.file}
    with TlsFront(origin, authority) as front:
        async with clean(short_path, front, **patient) as node:
            with node.calling(front.url("model")) as call:
                await until(lambda: call.progress().done_bytes > len(data) // 4)


async def test_an_odd_reply_now_and_then_does_not_cost_the_streams(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.LABELLED_200, Fault.NONE, Fault.NO_RANGES]
    async with fetching(short_path) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data
    assert len(ranges(origin, "model")) == len(origin.bodies("model"))


async def test_an_origin_that_is_odd_by_habit_is_not_probed_again(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.LABELLED_200] * 1000
    async with fetching(short_path) as node:
        for version, expected in (("v1", True), ("v2", False)):
            origin.put("model", data, etag=f'"{version}"').faults = [Fault.LABELLED_200] * 1000
            origin.requests.clear()
            with anyio.fail_after(20):
                await node.fetch(origin.url("model"))
            assert bool(ranges(origin, "model")) is expected


async def test_a_link_that_expires_midway_is_asked_for_once_and_all_streams_go_on(
    short_path: Path, origin: Origin, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    signed = origin.put("model?sig=1", data)
    origin.put("model?sig=2", data)
    origin.redirect("go", origin.url("model?sig=1"))
    origin.hold(after_bytes=1 << 20)
    async with fetching(short_path, streams=2, streams_max=2, stall_s=600) as node:
        with node.calling(origin.url("go")) as call:
            await until(lambda: len(ranges(origin, "model")) == 2)
            signed.lasting = Fault.FORBID
            origin.redirect("go", origin.url("model?sig=2"))
            origin.release()
            assert await call.wait(20)
            assert call.result().path.read_bytes() == data
    assert "general path" not in caplog.text
    assert len([name for name, _ in origin.requests if name == "go"]) == 2
    assert len(ranges(origin, "model")) == len(origin.bodies("model"))


async def test_a_refusal_that_a_fresh_link_does_not_mend_is_a_typed_error(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.FORBID] * 100
    async with fetching(short_path) as node:
        with pytest.raises(errors.PermissionDenied):
            await node.fetch(origin.url("model"))
    assert len(origin.bodies("model")) <= 2 * 8


async def test_a_lane_that_is_refused_again_and_again_waits_in_between(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.lane.random.random", lambda: 1.0)
    origin.put("model", data).faults = [Fault.NONE] + [Fault.FORBID] * 1000
    async with fetching(short_path, streams=2, streams_max=2, max_bytes_per_s=2_000_000) as node:
        with node.calling(origin.url("model")) as call:
            await until(lambda: call.progress().done_bytes > 3_000_000)
            refused = len(origin.bodies("model")) - 1
            assert 1 <= refused <= 5


async def test_a_fresh_link_to_another_version_is_a_change(
    short_path: Path, origin: Origin, data: bytes, other_data: bytes
) -> None:
    file = origin.put("model", data)
    file.next_version = File(other_data, '"v2"')
    file.faults = [Fault.FORBID]
    file.question_faults = [Fault.NONE, Fault.CHANGE]
    async with fetching(short_path, streams=1, streams_max=1) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == other_data
    matches = [headers.get("If-Match") for headers in origin.headers]
    assert matches.count('"v1"') == 1  # nobody asked the new one for the old one's bytes


async def test_while_a_host_wants_a_pause_nobody_asks_it(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    file = origin.put("model", data)
    file.faults, file.retry_after_s = [Fault.THROTTLE], 4
    origin.put("other", b"small")
    async with fetching(short_path) as node:
        with node.calling(origin.url("model")) as call:
            await until(lambda: call.progress().cause is Cause.THROTTLED)
            assert "left alone for" in call.progress().reason
            with node.calling(origin.url("other")) as other:
                await until(lambda: other.progress().cause is Cause.THROTTLED)
                asked = len(origin.requests)
                await until(lambda: other.progress().cause is not Cause.THROTTLED)
                assert await other.wait(20)
                assert await call.wait(20)
    assert all(name == "model" for name, _ in origin.requests[:asked])


@pytest.mark.parametrize("streams", [1, 8])
async def test_a_storm_of_refusals_between_which_bytes_come_ends_no_fetch(
    streams: int,
    short_path: Path,
    origin: Origin,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BASE_S", 0.01)
    draw = random.Random(3)
    storm = [draw.choice((Fault.NONE, Fault.UNAVAILABLE)) for _ in range(1000)]
    origin.put("model", data * 4).faults = [Fault.NONE, *[Fault.UNAVAILABLE] * 3, *storm]
    patience = {"retries": 2, "streams": streams, "streams_max": streams}
    async with fetching(short_path, **patience) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data * 4


async def test_a_storm_of_refusals_ends_no_fetch_of_one_reply_that_goes_on_with_what_came(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BASE_S", 0.01)
    monkeypatch.setattr("ckptd_daemon.transfer.abilities.Abilities.may_be_fast", lambda *_: False)
    origin.put("model", data).faults = [Fault.TRUNCATE] + [Fault.UNAVAILABLE] * 6
    async with fetching(short_path, retries=2) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == data


async def test_a_storm_of_refusals_ends_no_batch_of_small_files(
    short_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.BASE_S", 0.01)
    origin.put("first", b"1" * 1000)
    origin.put("second", b"2" * 1000).faults = [Fault.UNAVAILABLE] * 6
    async with fetching(short_path, retries=2) as node:
        await node.fetch(origin.url("first"))
        assert (await node.fetch(origin.url("second"))).read_bytes() == b"2" * 1000


@pytest.mark.parametrize("way", ["small", "streams", "one reply"])
async def test_a_storm_of_refusals_before_anything_came_ends_no_fetch_and_is_told(
    way: str, short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.CAP_S", 0.2)
    file = origin.put("model", data[:1000] if way == "small" else data)
    file.question_faults, file.faults = [Fault.UNAVAILABLE] * 6, [Fault.UNAVAILABLE] * 30
    file.lasting = Fault.NO_RANGES if way == "one reply" else None
    async with clean(short_path, origin, retries=0) as node:
        with node.calling(origin.url("model")) as call:
            await until(lambda: call.progress().cause is Cause.THROTTLED)
            assert "the origin answers 503" in call.progress().reason
            assert await call.wait(FETCH_S)
            assert call.result().path.read_bytes() == file.data


@pytest.mark.parametrize("way", ["small", "streams", "one reply"])
async def test_the_pause_that_a_refusal_asks_for_is_kept(
    way: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    file = origin.put("model", data[:1000] if way == "small" else data)
    file.faults, file.retry_after_s = [Fault.THROTTLE], 2
    file.lasting = Fault.NO_RANGES if way == "one reply" else None
    async with fetching(short_path, streams=1, streams_max=1) as node:
        assert (await node.fetch(origin.url("model"))).read_bytes() == file.data
    asked = zip(origin.requests, origin.asked_at, strict=True)
    refused_at, next_at, *_ = [at for (_, bytes_), at in asked if bytes_ != FIRST_BYTE]
    assert next_at - refused_at >= file.retry_after_s


async def test_a_reply_that_says_nothing_is_left_of_the_quota_is_the_last_for_so_long(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    file = origin.put("model", data)
    headers = {"RateLimit-Remaining": "0", "RateLimit-Reset": "1"}
    file.next_version = File(data, file.etag, headers=headers)
    file.faults = [Fault.CHANGE]
    async with fetching(short_path, streams=1, streams_max=1) as node:
        with node.calling(origin.url("model")) as call:
            await until(lambda: call.progress().cause is Cause.THROTTLED)
            assert await call.wait(20)
            assert call.result().path.read_bytes() == data


async def test_while_a_host_wants_a_pause_its_seats_are_for_others(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    file = origin.put("model", data)
    file.faults, file.retry_after_s = [Fault.THROTTLE] * 4, 600
    with Origin() as other:
        other.put("model", data)
        async with fetching(short_path, streams=2, streams_max=2) as node:
            with node.calling(origin.url("model")) as call:
                await until(lambda: call.progress().cause is Cause.THROTTLED)
                assert (await node.fetch(other.url("model"))).read_bytes() == data
                assert call.progress().cause is Cause.THROTTLED


async def test_slow_replies_of_the_general_path_leave_the_streams_their_memory(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    names = [f"slow{n}" for n in range(45)]
    for name in names:
        origin.put(name, data[:100_000], etag=None, last_modified=None)
    origin.hold()
    with Origin() as other, ExitStack() as calls:
        other.put("model", data)
        async with fetching(short_path, streams=64, stall_s=600) as node:
            for name in names:
                calls.enter_context(node.calling(origin.url(name)))
            await until(lambda: all(origin.bodies(name) for name in names[:40]))
            assert (await node.fetch(other.url("model"))).read_bytes() == data
            origin.release()
            calls.close()


async def test_a_small_fetch_gets_going_while_big_ones_have_all_streams(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    big = origin.put("big", data)
    big.faults, big.dribble_s = [Fault.DRIBBLE] * 100, 0.05
    origin.put("small", b"small")
    async with fetching(short_path, streams=2, streams_max=2, stall_s=600) as node:
        with node.calling(origin.url("big")) as call:
            await until(lambda: call.progress().streams == 2)
            assert (await node.fetch(origin.url("small"))).read_bytes() == b"small"
            assert call.progress().done_bytes < len(data)


async def test_who_leaves_while_it_connects_keeps_no_thread(short_path: Path) -> None:
    with deaf() as port:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/model", {}, ssl.create_default_context())
        obj = Object("o", "t", "v", "n", 1, True, Validator('"v"', None, True), endpoint.url, False)
        config = Config(socket=short_path / "s", state_dir=short_path, connect_s=600)
        stream = Stream(obj, endpoint, Pacer(Limits()).pace([], print, Flow()), config)
        failures: list[Exception] = []

        def connect() -> None:
            try:
                stream.connect()
            except TransientError as error:
                failures.append(error)

        thread = threading.Thread(target=connect)
        thread.start()

        def is_over() -> bool:
            stream.interrupt()
            return not thread.is_alive()

        await until(is_over)
        stream.close()
    assert len(failures) == 1


async def test_files_that_follow_each_other_come_over_one_connection(
    short_path: Path, origin: Origin
) -> None:
    async with clean(short_path, origin) as node:
        for index in range(8):
            name = f"part-{index}"
            origin.put(name, b"%d" % index * 100_000)
            assert (await node.fetch(origin.url(name))).read_bytes() == b"%d" % index * 100_000
    asked = zip(origin.ports, origin.requests, strict=True)
    assert len({port for port, (_, range_) in asked if range_ != FIRST_BYTE}) == 1


async def test_an_idle_connection_that_was_closed_costs_no_try(
    short_path: Path, origin: Origin
) -> None:
    origin.put("first", b"1" * 100_000)
    origin.put("second", b"2" * 100_000).faults = [Fault.HANG_UP]
    async with clean(short_path, origin, retries=0) as node:
        await node.fetch(origin.url("first"))
        assert (await node.fetch(origin.url("second"))).read_bytes() == b"2" * 100_000
    assert len(origin.bodies("second")) == 2


async def test_an_idle_connection_on_which_something_came_is_not_asked(
    short_path: Path, origin: Origin
) -> None:
    origin.put("first", b"1" * 100_000).faults = [Fault.SURPLUS]
    origin.put("second", b"2" * 100_000)
    async with clean(short_path, origin, retries=0) as node:
        await node.fetch(origin.url("first"))
        assert (await node.fetch(origin.url("second"))).read_bytes() == b"2" * 100_000
    assert len(origin.bodies("second")) == 1


async def test_a_new_connection_that_is_closed_costs_one(short_path: Path, origin: Origin) -> None:
    origin.put("only", b"1" * 100_000).faults = [Fault.HANG_UP] * 2
    async with clean(short_path, origin, retries=0) as node:
        with pytest.raises(errors.Unavailable):
            await node.fetch(origin.url("only"))
