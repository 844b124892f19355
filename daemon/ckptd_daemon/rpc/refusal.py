"""A service that says no to every call, and why."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from ckptd_daemon.rpc.status import Context
from ckptd_proto import errors


class Refusal(grpc.GenericRpcHandler):
    """Answers every method with `PermissionDenied`."""

    def service(self, handler_call_details: Any) -> Any:
        """Return the one answer, whatever the method."""
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    text = (
        f"this daemon serves user {os.geteuid()} and not you; "
        "start your own with `ckptd serve`, or have your uid added to its `allow_uids`"
    )
    raise errors.PermissionDenied(text)
    yield  # makes this a stream
