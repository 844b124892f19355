"""One table from our errors to gRPC status codes, and the interceptor that applies it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from ckptd_proto import errors
from ckptd_proto.urls import redacted

logger = logging.getLogger(__name__)

STATUS: Mapping[type[errors.CkptdError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
}

Context = grpc.aio.ServicerContext[Any, Any]

MESSAGE_MAX_BYTES = 4096  # times three when it is percent-encoded: must fit in 64 KiB of metadata
INSTANCE = "ckptd-instance"
_FOREVER_S = 1e6  # a call without a deadline has one in the far future
_SHARE = 0.9


def patience_s(context: Context) -> float | None:
    """Return how long a call may take and still have time to say why; None: as long as it likes."""
    left_s = context.time_remaining()
    return None if left_s is None or left_s > _FOREVER_S else left_s * _SHARE


class ErrorStatus(grpc.aio.ServerInterceptor):
    """Turn a `CkptdError` raised by any method into the status that the caller expects.

    A caller that says which life of the daemon it means, and means an earlier one, is sent back
    to say hello: gRPC reconnects by itself, and what the caller had registered is gone. While
    *is_stopping*, an `Unavailable` sends the caller to the next life.
    """

    def __init__(self, instance: str, is_stopping: Callable[[], bool]) -> None:
        self._instance = instance
        self._is_stopping = is_stopping

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler that gRPC found for this call, if it found one."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=self._reply(handler.unary_unary))
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=self._stream(handler.unary_stream))
        if handler.stream_stream is not None:
            return handler._replace(stream_stream=self._stream(handler.stream_stream))
        return handler._replace(stream_unary=self._reply(handler.stream_unary))

    def _reply(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            await self._check_instance(context)
            try:
                return await method(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  told to the caller; a bug is also logged
                await self._abort(context, error)

        return call

    def _stream(self, method: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._check_instance(context)
            try:
                async for response in method(request, context):
                    yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  told to the caller; a bug is also logged
                await self._abort(context, error)

        return call

    async def _check_instance(self, context: Context) -> None:
        for key, value in context.invocation_metadata() or ():
            if key == INSTANCE and value != self._instance:
                text = "the daemon was restarted since you said hello; say it again"
                await _end(context, errors.Unavailable(text), is_elsewhere=True)

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, errors.CkptdError):
            elsewhere = self._is_stopping() and isinstance(error, errors.Unavailable)
            await _end(context, error, is_elsewhere=elsewhere)
        logger.error("bug in a method", exc_info=error)
        text = f"ckptd has a bug ({type(error).__name__}: {error}); please report the daemon's log"
        await _end(context, errors.Internal(redacted(text)), is_elsewhere=False)


async def _end(context: Context, error: errors.CkptdError, *, is_elsewhere: bool) -> NoReturn:
    """End the call with *error*: its code, its sentence, its class and numbers as metadata."""
    metadata = [("ckptd-error", type(error).__name__)]
    if is_elsewhere:
        metadata.append(("ckptd-elsewhere", "1"))  # another life of the daemon can answer
    if error.id:
        metadata.append(("ckptd-error-id", error.id))
    if isinstance(error, errors.ResourceExhausted):
        numbers = {
            "ckptd-need-bytes": error.need_bytes,
            "ckptd-free-bytes": error.free_bytes,
            "ckptd-evictable-bytes": error.evictable_bytes,
        }
        metadata += [(key, str(value)) for key, value in numbers.items() if value is not None]
    sentence = str(error).encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore")
    await context.abort(STATUS[type(error)], sentence, trailing_metadata=tuple(metadata))
