"""gRPC's errors to ours, and back to the same class the daemon raised."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from ckptd_proto import errors

_BY_STATUS: Mapping[grpc.StatusCode, type[errors.CkptdError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
}
# what a dying or vanished server leaves behind
_TRANSPORT = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)


def typed(error: grpc.RpcError) -> errors.CkptdError:
    """Return the error as the daemon raised it; what gRPC itself says becomes the nearest class."""
    metadata = _metadata(error)
    message = _details(error)
    if name := metadata.get("ckptd-error"):
        rebuilt = errors.rebuilt(
            name,
            message,
            need_bytes=_number(metadata, "ckptd-need-bytes"),
            free_bytes=_number(metadata, "ckptd-free-bytes"),
            evictable_bytes=_number(metadata, "ckptd-evictable-bytes"),
        )
        if id := metadata.get("ckptd-error-id"):
            rebuilt.id = id
        return rebuilt
    if is_transport(error):
        return errors.Unavailable(f"the daemon went away ({message}); start it with `ckptd serve`")
    kind = _BY_STATUS.get(_code(error), errors.Internal)
    return kind(message or f"the call failed with {_code(error).name}")


def is_silence(error: grpc.RpcError) -> bool:
    """Say whether the daemon had not answered when the call's time was over."""
    is_told = "ckptd-error" in _metadata(error)
    return _code(error) is grpc.StatusCode.DEADLINE_EXCEEDED and not is_told


def is_transport(error: grpc.RpcError) -> bool:
    """Say whether the daemon went away, is going, or came back, rather than answered."""
    metadata = _metadata(error)
    if "ckptd-error" in metadata:
        return "ckptd-elsewhere" in metadata
    return _code(error) in _TRANSPORT


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.Call) else str(error)


def _metadata(error: grpc.RpcError) -> dict[str, str]:
    if not isinstance(error, grpc.Call):
        return {}
    return {key: str(value) for key, value in error.trailing_metadata() or ()}


def _number(metadata: Mapping[str, str], key: str) -> int | None:
    return int(metadata[key]) if key in metadata else None
