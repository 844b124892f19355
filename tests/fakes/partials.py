"""What a partial on the disk says of itself."""

from __future__ import annotations

from pathlib import Path

CHUNK_BYTES = 16 << 20
RECORD_BYTES = 12


def landed_bytes(partial: Path) -> int:
    """Return what the journal claims, in whole chunks."""
    records = (partial / "journal").read_bytes().partition(b"\n")[2]
    return len(records) // RECORD_BYTES * CHUNK_BYTES
