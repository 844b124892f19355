"""One table from our errors to gRPC status codes, and the interceptor that applies it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from ckptd_proto import errors

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


async def _abort(context: Context, error: errors.CkptdError, *, stopping: bool) -> NoReturn:
    """End the call with *error*: its code, its sentence, its class and numbers as metadata."""
    metadata = [("ckptd-error", type(error).__name__)]
    if stopping and isinstance(error, errors.Unavailable):
        metadata.append(("ckptd-stopping", "1"))  # the next life of the daemon can answer
    if isinstance(error, errors.ResourceExhausted):
        numbers = {"ckptd-need-bytes": error.need_bytes, "ckptd-free-bytes": error.free_bytes}
        metadata += [(key, str(value)) for key, value in numbers.items() if value is not None]
    sentence = str(error).encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore")
    await context.abort(STATUS[type(error)], sentence, trailing_metadata=tuple(metadata))


async def _abort_on_bug(context: Context, error: Exception) -> NoReturn:
    """End the call with INTERNAL; the traceback goes to the log, for nobody else will see it."""
    logger.error("bug in a method", exc_info=error)
    text = f"ckptd has a bug ({type(error).__name__}: {error}); please report the daemon's log"
    await _abort(context, errors.Internal(text), stopping=False)


def _reply(
    method: Callable[..., Awaitable[Any]], is_stopping: Callable[[], bool]
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except errors.CkptdError as error:
            await _abort(context, error, stopping=is_stopping())
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  told to the caller and logged
            await _abort_on_bug(context, error)

    return call


def _stream(
    method: Callable[..., AsyncIterator[Any]], is_stopping: Callable[[], bool]
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in method(request, context):
                yield response
        except errors.CkptdError as error:
            await _abort(context, error, stopping=is_stopping())
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  told to the caller and logged
            await _abort_on_bug(context, error)

    return call


class ErrorStatus(grpc.aio.ServerInterceptor):
    """Turn a `CkptdError` raised by any method into the status that the caller expects.

    While *is_stopping*, an `Unavailable` also tells the client to come back after the restart.
    """

    def __init__(self, is_stopping: Callable[[], bool]) -> None:
        self._is_stopping = is_stopping

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler that gRPC found for this call, if it found one."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=_reply(handler.unary_unary, self._is_stopping))
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=_stream(handler.unary_stream, self._is_stopping))
        if handler.stream_stream is not None:
            return handler._replace(stream_stream=_stream(handler.stream_stream, self._is_stopping))
        return handler._replace(stream_unary=_reply(handler.stream_unary, self._is_stopping))
