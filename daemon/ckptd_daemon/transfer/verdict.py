"""Whether an object's bytes are what somebody stated, and who: the strongest statement decides."""

from __future__ import annotations

import secrets

from ckptd_daemon.sources.source import Object
from ckptd_daemon.store import crc
from ckptd_daemon.store.blob import Verification
from ckptd_daemon.store.partials import Partial


class MismatchError(Exception):
    """An object's bytes are not what this flight was to bring."""

    def __init__(self, what: str, expected: str, found: str, *, is_of_origin: bool) -> None:
        super().__init__(f"{what} {found} instead of {expected}")
        self.id = secrets.token_hex(4)
        """The same for all who share the flight."""
        self.what = what
        self.expected = expected
        self.found = found
        self.is_of_origin = is_of_origin
        """The origin stated it, so that it is wrong for whoever asks."""


def judged(
    obj: Object, partial: Partial, size_bytes: int, sha256: str | None, found: str
) -> Verification:
    """Return what speaks for a filled *partial*, whose SHA-256 is *found* if it was computed.

    Raises `MismatchError` if it is not what the caller states by *sha256*, or, where no caller
    states anything, what the origin does.
    """
    stated = obj.checksums
    if sha256 is not None:
        if found != sha256:
            raise MismatchError("SHA-256", sha256, found, is_of_origin=False)
        return Verification.SHA256
    if stated.crc32c is not None and (whole := _crc32c(partial, size_bytes)) != stated.crc32c:
        expected = f"{stated.crc32c:08x}"
        raise MismatchError("CRC32C", expected, f"{whole:08x}", is_of_origin=True)
    if stated.sha256 is not None:
        if found != stated.sha256:
            raise MismatchError("SHA-256", stated.sha256, found, is_of_origin=True)
        return Verification.SHA256
    is_checked = (
        stated.crc32c is not None or obj.chunk_crc32c
    )  # the latter one by one, as they came
    return Verification.STORE_CHECKSUM if is_checked else Verification.TRANSPORT


def unlike(obj: Object, error: MismatchError) -> str:
    """Say what to do about an object that came, twice, unlike its origin states."""
    return (
        f"{obj.title} came with the {error.what} {error.found}, twice, and its origin states "
        f"{error.expected}; ask whoever publishes it, or state its SHA-256 if you know it"
    )


def _crc32c(partial: Partial, size_bytes: int) -> int:
    """Return the CRC32C of all of *partial*, from those of its chunks."""
    extents = ((chunk, partial.header.extent(at)) for at, chunk in sorted(partial.landed.items()))
    return crc.whole((chunk, min(end, size_bytes) - start) for chunk, (start, end) in extents)
