"""The verbs that make files durable: the only fsync, rename, fallocate and O_DIRECT.

A full disk or quota is a `ResourceExhausted` with numbers here, once; a missing right is a
`PermissionDenied`; a failing disk is `Unavailable`. Every other `OSError` is the caller's to read.
Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckptd_proto import errors

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_BROKEN: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO})
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_UNLINKABLE: Final = _UNSUPPORTED | {errno.EPERM, errno.EMLINK}
_RENAME_EXCHANGE: Final = 2
_PUNCH_HOLE_KEEP_SIZE: Final = 3
_AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.renameat2.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
]


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write where *path* is, or would be."""
    return disk_bytes(path)[0]


def disk_bytes(path: Path) -> tuple[int, int]:
    """Return what may still be written where *path* is, or would be, and the size of all."""
    while True:
        try:
            stat = os.statvfs(path)
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize


@contextmanager
def explained(path: Path, *, need_bytes: int | None = None) -> Iterator[None]:
    """Turn what the disk says while *path* is written into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if (typed := _typed(error, path, need_bytes)) is None:
            raise
        raise typed from error


def _typed(error: OSError, path: Path, need_bytes: int | None) -> errors.CkptdError | None:
    words = os.strerror(error.errno or 0)
    if error.errno in _FULL:
        free = free_bytes(path)
        need = "" if need_bytes is None else f"{need_bytes} bytes are needed, "
        text = f"{words} at {path}: {need}{free} are free; free some space or use another place"
        return errors.ResourceExhausted(text, need_bytes=need_bytes, free_bytes=free)
    if error.errno in _REFUSED:
        text = f"the daemon (uid {os.getuid()}) may not write {path}: {words}; fix its permissions"
        return errors.PermissionDenied(text)
    if error.errno in _BROKEN:
        return errors.Unavailable(f"the disk failed at {path}: {words}; check it and try again")
    return None


def sync_dir(path: Path) -> None:
    """Make the entries of the directory durable."""
    with explained(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class SharedDir:
    """A directory of many hands: one sync covers all who ask for one until it begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counting = threading.Lock()
        self._syncing = threading.Lock()
        self._asked = self._begun = self._synced = 0

    @property
    def waiting(self) -> int:
        """How many have asked, and no sync has begun for."""
        return self._asked - self._begun

    def sync(self) -> None:
        """Make what the directory has in it by now durable."""
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._syncing:
            if self._synced >= mine:
                return
            with self._counting:
                last = self._begun = self._asked
            sync_dir(self._path)
            self._synced = last


def sync_file(fd: int) -> None:
    """Make what was written to *fd* durable."""
    with explained(_path_of(fd)):
        os.fsync(fd)


def _path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def make_dirs(path: Path, *, mode: int = 0o777) -> None:
    """Create the directory and its missing parents, each durable in its own parent."""
    if path.is_dir():
        return
    make_dirs(path.parent, mode=mode)
    with explained(path):
        path.mkdir(mode=mode, exist_ok=True)
    sync_dir(path.parent)


def write_file(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o666,
    survives: bool = True,
    names_later: bool = False,
) -> None:
    """Replace *path* by a file that holds *data*: at any instant the old, or the new, whole.

    What need not survive a power cut, after which it may be empty, costs no sync. With
    *names_later* the caller syncs the directory.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path, need_bytes=len(data)):
        try:
            _write_new(temporary, data, mode, survives=survives)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if survives and not names_later:
        sync_dir(path.parent)


def write_first(path: Path, data: bytes) -> bool:
    """Write a file that holds *data* unless it is there: True if it was not. Durable, and whole.

    Who links first, has it; a filesystem without links lets the last one win.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path, need_bytes=len(data)):
        try:
            _write_new(temporary, data, 0o666)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def write_new(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write and sync a file into a directory that nobody reads yet and that is synced later."""
    with explained(path, need_bytes=len(data)):
        _write_new(path, data, mode)


def _write_new(path: Path, data: bytes, mode: int, *, survives: bool = True) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        pwrite_all(fd, memoryview(data), 0)
        if survives:
            os.fsync(fd)
    finally:
        os.close(fd)


def link(src: Path, dst: Path) -> None:
    """Give the file *src* the name *dst* as well, in a directory that is synced later."""
    with explained(dst):
        os.link(src, dst, follow_symlinks=False)


def rename(src: Path, dst: Path) -> None:
    """Give *src* the name *dst* in the same directory, which the caller syncs later."""
    with explained(dst):
        src.rename(dst)


def publish(src: Path, dst: Path) -> None:
    """Give *src*, which is whole and synced, the name *dst*; durable when this returns.

    A file replaces a file. A directory replaces nothing but an empty directory: `OSError`.
    """
    with explained(dst):
        src.rename(dst)
    sync_dir(dst.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, durably; False if the filesystem cannot."""
    if not swap(one, other):
        return False
    sync_dir(other.parent)
    return True


def swap(one: Path, other: Path) -> bool:
    """Swap two names in one step, in directories that the caller syncs later; False if it cannot."""
    names = os.fsencode(one), os.fsencode(other)
    with explained(other):
        result = _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
        if result != 0:
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            raise OSError(code, os.strerror(code), str(one), None, str(other))
    return True


def preallocate(fd: int, size: int) -> bool:
    """Give *fd* the length *size*; True if the filesystem has really reserved the space."""
    with explained(_path_of(fd), need_bytes=size):
        return _preallocate(fd, size)


def _preallocate(fd: int, size: int) -> bool:
    reserved = True
    while size > 0 and _libc.fallocate(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            reserved = False
            break
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)
    return reserved


def release(fd: int, size: int) -> None:
    """Give the space of *fd* back, whoever still maps it; its length stays, so nobody faults."""
    if size > 0 and _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, 0, size) != 0:
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))


def open_direct(path: Path, flags: int, *, mode: int = 0o666) -> tuple[int, bool]:
    """Open *path* past the page cache where the filesystem can: the descriptor, and if it could."""
    with explained(path):
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
    return fd, _set_direct(fd, on=True)


def _set_direct(fd: int, *, on: bool) -> bool:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def pread_all(fd: int, target: memoryview, offset: int) -> int:
    """Fill *target* from *offset* as far as the file goes, past the cache if *fd* is direct.

    Returns how far.
    """
    done = 0
    while done < len(target):
        try:
            count = os.preadv(fd, [target[done:]], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                with explained(_path_of(fd)):
                    raise
            _set_direct(fd, on=False)
            continue
        if count == 0:
            break
        done += count
    return done


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of *data* at *offset*, past the cache if *fd* is direct and the kernel agrees.

    Some filesystems take O_DIRECT when a file is opened and refuse it, or stop at an odd
    length, when it is written: the descriptor is then buffered from there on.
    """
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(fd, data[done:], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                with explained(_path_of(fd), need_bytes=len(data) - done):
                    raise
            _set_direct(fd, on=False)
