"""What can go wrong, by what the caller can do about it; one class per canonical gRPC code.

Both sides speak this tree: the daemon raises a class, its name and numbers travel in the
trailing metadata of the call, and the client raises the same class with the same sentence.
Every message says in one sentence what happened and what to do.
"""

from __future__ import annotations


class CkptdError(Exception):
    """Base of every error that ckptd raises."""

    id: str = ""
    """Of a failure that several callers share, also in the daemon's log; empty for one's own."""

    def renewed(self, message: str) -> CkptdError:
        """Return the same error in other words, with the same id and numbers."""
        error = rebuilt(
            type(self).__name__,
            message,
            **{name: value for name, value in vars(self).items() if name.endswith("_bytes")},
        )
        error.id = self.id
        return error

    def shared_as(self, id: str) -> None:
        """Be known by *id*, in words too."""
        self.id = id
        self.args = (f"{self} [error {id}]", *self.args[1:])


class InvalidArgument(CkptdError):
    """The request itself is wrong, whatever the state of the system."""


class NotFound(CkptdError):
    """What was asked for does not exist; the message lists everything tried."""


class AlreadyExists(CkptdError):
    """The name is taken by something else."""


class FailedPrecondition(CkptdError):
    """The system is not in the state that the request needs."""


class Aborted(CkptdError):
    """A concurrent event ended the work; the message names it."""


class DataLoss(CkptdError):
    """Bytes are corrupt, truncated or changed."""


class ResourceExhausted(CkptdError):
    """Memory, disk or quota cannot hold it; the numbers say by how much."""

    def __init__(
        self,
        message: str,
        *,
        need_bytes: int | None = None,
        free_bytes: int | None = None,
        evictable_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes
        self.evictable_bytes = evictable_bytes
        """What the cache could give up on its own; None where nothing is evicted."""


class PermissionDenied(CkptdError):
    """The caller, or the daemon, lacks the right."""


class Unauthenticated(CkptdError):
    """A remote wants credentials, or other ones."""


class Unavailable(CkptdError):
    """A remote or the daemon cannot be reached now; trying again later may help."""


class DeadlineExceeded(CkptdError, TimeoutError):
    """The caller's time ran out; the work may still be going on."""


class Unimplemented(CkptdError):
    """This version cannot do that; the message says what can."""


class Internal(CkptdError):
    """A defect of ckptd itself."""


BY_NAME: dict[str, type[CkptdError]] = {
    error.__name__: error for error in CkptdError.__subclasses__()
}


def rebuilt(
    name: str,
    message: str,
    *,
    need_bytes: int | None = None,
    free_bytes: int | None = None,
    evictable_bytes: int | None = None,
) -> CkptdError:
    """Return the error called *name*, as it was before it travelled or was written down.

    A name this version does not know becomes `Internal`.
    """
    error = BY_NAME.get(name, Internal)
    if error is ResourceExhausted:
        return ResourceExhausted(
            message,
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            evictable_bytes=evictable_bytes,
        )
    return error(message)
