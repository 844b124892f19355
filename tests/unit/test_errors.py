from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import grpc
import grpc.aio
import pytest

from ckptd import errors
from ckptd.link import wire
from ckptd_daemon.rpc.status import STATUS, Context, ErrorStatus
from ckptd_proto.exits import EXIT_CODES

EXAMPLES = [
    *(kind(f"a {kind.__name__}: naïve, 100 %, “quoted”") for kind in STATUS),
    errors.ResourceExhausted("full", need_bytes=14_100_000_000, free_bytes=0),
    errors.ResourceExhausted("full", need_bytes=3, free_bytes=2, evictable_bytes=0),
    errors.NotFound("tried " + ", ".join(f"/a/long/path/{n}" for n in range(150))),
]
EXAMPLES[-1].shared_as("0a1b2c3d")


class Raising(grpc.GenericRpcHandler):
    """Every method raises what the test wants."""

    error: Exception
    is_stopping = False

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == "/unary":
            return grpc.unary_unary_rpc_method_handler(self._unary)
        return grpc.unary_stream_rpc_method_handler(self._stream)

    async def _unary(self, request: bytes, context: Context) -> bytes:
        raise self.error

    async def _stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"first"
        raise self.error


class Remote:
    def __init__(self, handler: Raising, address: str) -> None:
        self.handler = handler
        self.address = address

    async def fail(
        self, error: Exception, method: str = "/unary", *, instance: str = "this life"
    ) -> grpc.RpcError:
        self.handler.error = error
        return await anyio.to_thread.run_sync(self._call, method, instance)

    def _call(self, method: str, instance: str) -> grpc.RpcError:
        metadata = (("ckptd-instance", instance),)
        options = [("grpc.max_metadata_size", 64 << 10)]
        with (
            grpc.insecure_channel(self.address, options) as channel,
            pytest.raises(grpc.RpcError) as failure,
        ):
            if method == "/unary":
                channel.unary_unary(method)(b"", metadata=metadata)
            else:
                list(channel.unary_stream(method)(b"", metadata=metadata))
        return failure.value


@pytest.fixture
async def remote(short_path: Path) -> AsyncIterator[Remote]:
    handler = Raising()
    server = grpc.aio.server(interceptors=(ErrorStatus("this life", lambda: handler.is_stopping),))
    server.add_generic_rpc_handlers((handler,))
    address = f"unix:{short_path}/s"
    server.add_insecure_port(address)
    await server.start()
    yield Remote(handler, address)
    await server.stop(0)


@pytest.mark.parametrize("method", ["/unary", "/stream"])
async def test_every_error_arrives_as_it_left(remote: Remote, method: str) -> None:
    for error in EXAMPLES:
        arrived = wire.typed(await remote.fail(error, method))
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
        assert vars(arrived) == vars(error)


async def test_a_bug_arrives_as_internal_and_is_logged(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    arrived = wire.typed(await remote.fail(ZeroDivisionError("oops https://h/a?token=secret")))
    assert isinstance(arrived, errors.Internal)
    assert "ckptd has a bug (ZeroDivisionError: oops https://h/a?…" in str(arrived)
    assert "secret" not in str(arrived)
    assert caplog.records[0].exc_info is not None


async def test_what_a_stopping_daemon_cannot_do_its_next_life_is_asked(remote: Remote) -> None:
    unavailable = errors.Unavailable("the daemon is stopping")
    assert not wire.is_transport(await remote.fail(unavailable))
    remote.handler.is_stopping = True
    assert wire.is_transport(await remote.fail(unavailable))
    assert not wire.is_transport(await remote.fail(errors.NotFound("no")))


async def test_a_call_for_an_earlier_life_of_the_daemon_is_sent_back_to_say_hello(
    remote: Remote,
) -> None:
    not_found = errors.NotFound("the method was reached")
    assert wire.is_transport(await remote.fail(not_found, instance="an earlier life"))
    arrived = wire.typed(await remote.fail(not_found, instance="this life"))
    assert isinstance(arrived, errors.NotFound)


def test_every_class_has_a_status_and_an_exit_code() -> None:
    assert set(STATUS) == set(EXIT_CODES) == set(errors.CkptdError.__subclasses__())
    assert len(set(STATUS.values())) == len(STATUS)
    assert set(EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6, 7}


def test_an_error_of_a_later_version_is_not_lost() -> None:
    assert isinstance(errors.CkptdError(), Exception)
    from ckptd_proto.errors import rebuilt

    assert str(rebuilt("FromTheFuture", "words")) == "words"
