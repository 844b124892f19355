"""What a process holds, as the kernel counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path


def anon_bytes(pid: int) -> int:
    """Return the memory that is its own."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
