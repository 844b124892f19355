"""What kind of filesystem a path lies on."""

from __future__ import annotations

from pathlib import Path

NETWORK_FILESYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs",
        "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2",
        "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
    }
)  # fmt: skip


def filesystem(path: Path) -> str:
    """Return the type, as /proc/mounts has it, of the filesystem that holds *path*.

    A path that does not exist yet is judged by its nearest ancestor that does.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    best, found = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        point = Path(_unescaped(fields[1]))
        # the last mount on a point hides the ones before it
        if path.is_relative_to(point) and point.is_relative_to(best):
            best, found = point, fields[2]
    return found


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
