"""Whose an attempt's directory is: many daemons may save below one shared root."""

from __future__ import annotations

import hashlib
import platform
import secrets
from pathlib import Path

from ckptd_daemon.store import durable

_NAME_BYTES = 6


def own_name(state_dir: Path) -> str:
    """Return what no daemon has in common with that of *state_dir*, on this host.

    The host is part of it, because a state directory may have been copied with a whole machine.
    """
    file = state_dir / "owner"
    try:
        secret = file.read_text()
    except FileNotFoundError:
        secret = secrets.token_hex(16)
        durable.write_file(file, secret.encode(), mode=0o600)
    words = f"{secret}\0{platform.node()}"
    return hashlib.sha256(words.encode()).hexdigest()[: 2 * _NAME_BYTES]


def new_attempt_id(owner: str, sequence: int) -> str:
    """Return an id that nobody else has, and that tells whose the attempt is."""
    return f"{sequence}-{owner}-{secrets.token_hex(8)}"


def sequence_of(attempt_id: str) -> int:
    """Return which save of its job's life the attempt is; 0 if nobody can tell."""
    number = attempt_id.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def is_of(owner: str, attempt_id: str) -> bool:
    """Say whether `new_attempt_id` made the id, for *owner*."""
    parts = attempt_id.split("-")
    return len(parts) == 3 and parts[1] == owner
