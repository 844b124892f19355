"""What kind of filesystem a path lies on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NETWORK_FILESYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs",
        "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2",
        "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mount:
    """A filesystem where it is mounted, as /proc/mounts has it."""

    point: Path
    kind: str
    options: frozenset[str]


def mount(path: Path) -> Mount:
    """Return the mount that holds *path*.

    A path that does not exist yet is judged by its nearest ancestor that does.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    found = Mount(Path("/"), "unknown", frozenset())
    for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines():
        _, point_field, kind, options, *_ = line.split()
        point = Path(_unescaped(point_field))
        # the last mount on a point hides the ones before it
        if path.is_relative_to(point) and point.is_relative_to(found.point):
            found = Mount(point, kind, frozenset(options.split(",")))
    return found


def filesystem(path: Path) -> str:
    """Return the type of the filesystem that holds *path*, as `mount` finds it."""
    return mount(path).kind


def is_network(kind: str) -> bool:
    """Say whether a filesystem type is one where locks and renames cross machines."""
    return kind in NETWORK_FILESYSTEMS or kind.startswith("fuse.")


def _unescaped(field: str) -> str:
    return (
        field.replace(r"\040", " ")
        .replace(r"\011", "\t")
        .replace(r"\012", "\n")
        .replace(r"\134", "\\")
    )
