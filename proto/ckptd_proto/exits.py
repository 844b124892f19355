"""What a process says at its end: exit code and last words; the same for `ckptd` and the daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def last_words(name: str, sentence: str, code: int, error: Exception | None, *, json_: bool) -> str:
    """Return the line that tells why the process ends: JSON if its caller asked for that."""
    if not json_:
        return f"ckptd: {sentence}\n"
    fields: dict[str, Any] = {"error": name, "message": sentence, "exit_code": code}
    if isinstance(error, errors.CkptdError) and error.id:
        fields["id"] = error.id
    if isinstance(error, errors.ResourceExhausted):
        fields |= {"need_bytes": error.need_bytes, "free_bytes": error.free_bytes}
        if error.evictable_bytes is not None:
            fields["evictable_bytes"] = error.evictable_bytes
    return json.dumps(fields) + "\n"
