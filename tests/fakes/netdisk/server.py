"""The filesystem of one node: passes on what it is asked, as its rules and its view have it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import mfusepy

from fakes.netdisk.rules import Rules
from fakes.netdisk.view import View, attributes_of


def _serve() -> None:
    """The node's end."""
    truth, at = sys.argv[1:]
    rules, view = Rules(), View(truth)

    class Passing(mfusepy.Operations):
        """Does what it is asked below *truth*, unless something is to befall the call."""

        use_ns = True

        def init(self, path: str) -> None:
            _tell("mounted")

        @rules.governed
        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            return view.look(path) if fh is None else attributes_of(os.fstat(fh))

        @rules.governed
        def opendir(self, path: str) -> int:
            view.opened(path)
            return os.open(view.real(path), os.O_RDONLY | os.O_DIRECTORY)

        @rules.governed
        def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
            names = [(".", 1), ("..", 1), *view.list(path)]
            return [(name, {"st_ino": inode}, 0) for name, inode in names]

        def releasedir(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        @rules.governed
        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            return 0

        @rules.governed
        def mkdir(self, path: str, mode: int) -> int:
            view.real(path).mkdir(mode)
            view.changed(path)
            return 0

        @rules.governed
        def rmdir(self, path: str) -> int:
            view.real(path).rmdir()
            view.changed(path)
            return 0

        @rules.governed
        def unlink(self, path: str) -> int:
            view.real(path).unlink()
            view.changed(path)
            return 0

        @rules.governed
        def rename(self, old: str, new: str) -> int:
            view.real(old).rename(view.real(new))
            view.changed(old, new)
            return 0

        @rules.governed
        def link(self, target: str, source: str) -> int:
            os.link(view.real(source), view.real(target), follow_symlinks=False)
            view.changed(source, target)
            return 0

        def symlink(self, target: str, source: str) -> int:
            view.real(target).symlink_to(source)
            view.changed(target)
            return 0

        def readlink(self, path: str) -> str:
            return str(view.real(path).readlink())

        @rules.governed
        def create(self, path: str, mode: int, flags: int) -> int:
            fd = os.open(view.real(path), flags & ~os.O_DIRECT, mode)
            view.changed(path)
            return fd

        @rules.governed
        def open(self, path: str, flags: int) -> int:
            return os.open(view.real(path), flags & ~os.O_DIRECT)

        @rules.governed
        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        @rules.governed
        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        @rules.governed
        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(view.real(path) if fh is None else fh, length)
            view.changed(path)
            return 0

        @rules.governed
        def fsync(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def release(self, path: str, fh: int) -> int:
            view.changed(path)  # it has another size than before
            os.close(fh)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(truth)
            return {name: getattr(found, name) for name in dir(found) if name.startswith("f_b")}

    class Fuse(mfusepy.FUSE):
        """One that cannot exchange two names, as network filesystems cannot."""

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            return -errno.EINVAL if flags else super().rename_fuse_3(old, new, flags)

    def listen() -> None:
        commands = {"begin": rules.begin, "met": rules.met, "end": rules.end, "lag": view.lag}
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            _tell(json.dumps(commands[command](*arguments)))
        os._exit(0)

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    threading.Thread(target=listen, daemon=True).start()
    believed = dict.fromkeys(("entry_timeout", "attr_timeout", "negative_timeout"), 0)
    Fuse(Passing(), at, foreground=True, use_ino=True, hard_remove=True, **believed)


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
