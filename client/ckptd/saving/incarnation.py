"""Which life of a job this is, when no process group can tell."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_NAMES = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)


def of_launch() -> str:
    """Return a name that all ranks of this launch share, and no other launch has.

    Launchers' own ids are not unique (torchrun's is `none` unless given), so the launcher's
    process is part of it: the nearest ancestor that is not itself a rank.
    """
    launcher = _launcher()
    parts = [os.environ.get(name, "") for name in _NAMES]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    parts += [boot, str(launcher), _started(launcher)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _launcher() -> int:
    pid = os.getppid()
    while pid > 1 and _is_rank(pid):
        pid = int(_stat(pid)[1])
    return pid


def _is_rank(pid: int) -> bool:
    """Say whether the process has the rank we have: a shell, say, between launcher and us."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    name = "RANK" if "RANK" in os.environ else "SLURM_PROCID"
    return f"{name}={os.environ.get(name)}".encode() in environ


def _started(pid: int) -> str:
    try:
        return _stat(pid)[19]
    except OSError:
        return ""  # gone: only its number is known


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/pid/stat after the command, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
