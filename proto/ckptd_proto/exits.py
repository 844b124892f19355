"""What a process says by its exit code; the same for `ckptd` and the daemon."""

from __future__ import annotations

from collections.abc import Mapping

from ckptd_proto import errors

INTERRUPTED = 130

EXIT_CODES: Mapping[type[errors.CkptdError], int] = {
    errors.Internal: 1,
    errors.InvalidArgument: 2,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.FailedPrecondition: 4,
    errors.Aborted: 4,
    errors.PermissionDenied: 4,
    errors.Unauthenticated: 4,
    errors.Unimplemented: 4,
    errors.DataLoss: 5,
    errors.Unavailable: 6,
    errors.DeadlineExceeded: 6,
    errors.ResourceExhausted: 7,
}
