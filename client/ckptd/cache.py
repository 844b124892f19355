"""What the node's cache holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptd.fetching import verification_of
from ckptd.values import Blob, Verdict
from ckptd_proto.v1 import blobs_pb2

if TYPE_CHECKING:
    from ckptd.link.connection import Connection, Stubs


def blobs(connection: Connection) -> list[Blob]:
    """Return the blobs of the cache, the least recently used first."""
    request = blobs_pb2.ListBlobsRequest()
    messages = connection.call(lambda stubs: list(stubs.blobs.List(request)))
    return sorted(map(_blob, messages), key=lambda blob: blob.used_at)


def remove(connection: Connection, key: str, *, force: bool = False) -> int:
    """Drop a blob that nobody holds; returns the bytes it took."""
    request = blobs_pb2.RemoveBlobRequest(key=key, force=force)
    return connection.call(lambda stubs: stubs.blobs.Remove(request)).freed_bytes


def verify(
    connection: Connection,
    keys: Sequence[str] = (),
    on_verdict: Callable[[Verdict], object] = bool,
) -> list[Verdict]:
    """Have the blobs called *keys*, or all, read back from the disk; *on_verdict* hears of each."""
    request = blobs_pb2.VerifyBlobsRequest(keys=keys)

    def listen(stubs: Stubs) -> list[Verdict]:
        verdicts = []
        for message in stubs.blobs.Verify(request):
            verdicts.append(_verdict(message))
            on_verdict(verdicts[-1])
        return verdicts

    return connection.call(listen)


def _verdict(message: blobs_pb2.BlobVerdict) -> Verdict:
    return Verdict(
        key=message.key,
        object=message.object,
        size_bytes=message.size_bytes,
        chunks=message.chunks,
        damaged_chunks=tuple(message.damaged_chunks),
        quarantine=Path(message.quarantine) if message.quarantine else None,
    )


def _blob(message: blobs_pb2.Blob) -> Blob:
    return Blob(
        key=message.key,
        object=message.object,
        version=message.version,
        path=Path(message.path),
        size_bytes=message.size_bytes,
        sha256=message.sha256 or None,
        verification=verification_of(message) or "",
        leases=message.leases,
        used_at=message.used_at,
    )
