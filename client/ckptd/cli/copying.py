"""Copies of what the cache holds: reflinks where the filesystem can, never links into the cache."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from ckptd_proto import errors

_FICLONE = 0x40049409  # linux/fs.h
BLOCK_BYTES = 8 << 20


def copied(source: Path, target: Path) -> Path:
    """Put a copy of the file or tree *source* at *target*, all of it or nothing, and return it.

    A file replaces a file; a tree replaces nothing but an empty directory: `AlreadyExists`.
    """
    if source.is_dir() and target.absolute().is_relative_to(source):
        text = f"{target} is inside {source}; choose another place with -o"
        raise errors.InvalidArgument(text)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if source.is_dir():
            _copy_tree(source, temporary)
        else:
            _copy_file(source, temporary)
        temporary.replace(target)
        _sync_dir(target.parent)
    except OSError as error:
        raise _unwritable(source, target, error) from error
    finally:
        with suppress(OSError):  # it is the target by now, or was never made
            temporary.unlink() if not temporary.is_dir() else shutil.rmtree(temporary)
    return target.absolute()


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir() and not path.is_symlink():
            _copy_tree(path, target / path.name)
        else:
            _copy_file(path, target / path.name)
    _sync_dir(target)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
        except OSError:  # another filesystem, or one that cannot share blocks
            shutil.copyfileobj(reader, writer, BLOCK_BYTES)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a directory."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _unwritable(source: Path, target: Path, error: OSError) -> errors.CkptdError:
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}:
        text = f"{target} exists already; remove it, or choose another place with -o"
        return errors.AlreadyExists(text)
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        text = f"cannot write {target}: {error.strerror}; choose another place with -o"
        return errors.PermissionDenied(text)
    need, free = size_bytes(source), shutil.disk_usage(target.parent).free
    return errors.ResourceExhausted(
        f"cannot write {target}: {need} bytes are needed and {free} are free; "
        "free some space or choose another place with -o",
        need_bytes=need,
        free_bytes=free,
    )
