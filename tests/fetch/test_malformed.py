"""Whatever a client sends, the daemon lives, and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from ckptd_proto.v1 import blobs_pb2
from fakes.daemon import Daemon
from fakes.origin import Origin

NO_MESSAGE = b"\xff\xff\xff"


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=options) as channel:
        yield channel


@pytest.mark.parametrize("is_open", [False, True], ids=["first", "later"])
def test_a_request_that_is_no_message_ends_its_own_call_only(
    is_open: bool, daemon: Daemon, channel: grpc.Channel, origin: Origin
) -> None:
    origin.put("model", b"data")
    origin.hold()
    opening = blobs_pb2.ReadOpen(ref=origin.url("model"), whole=True)
    asked = blobs_pb2.ReadRequest(open=opening).SerializeToString()
    read = channel.stream_stream("/ckptd.v1.Blobs/Read")  # bytes go as they are
    events = read(iter([asked, NO_MESSAGE] if is_open else [NO_MESSAGE]), timeout=20)
    with pytest.raises(grpc.RpcError):
        list(events)
    assert events.code() is grpc.StatusCode.INVALID_ARGUMENT
    origin.release()
    assert daemon.client().fetch(origin.url("model")).read_bytes() == b"data"
