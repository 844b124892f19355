"""Where the checkpoints of a run live, and what may be called so. Pure but for what is said of roots."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Final, Self, TypeVar, TypeVarTuple

from ckptd_daemon.save import threads
from ckptd_daemon.store import durable
from ckptd_proto import errors

NAME_BYTES_MAX: Final = 128
METRICS_MAX: Final = 1024
METRICS_BYTES_MAX: Final = 128 << 10  # their names; they are in every list of steps
IMAGES_MAX: Final = 64  # per rank
IMAGE_NAME_BYTES_MAX: Final = 250  # with `.sums` behind it still a file name
MANIFEST: Final = "manifest.json"
SUMS: Final = ".sums"
STEP_MAX: Final = (1 << 63) - 1
_STEP_PREFIX: Final = "step-"

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Where = TypeVar("Where", "Place", Path)


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one run."""

    root: Path
    experiment: str
    run: str

    @classmethod
    def named(cls, root: str, experiment: str, run: str) -> Self:
        """Return the place, its names checked; raises `InvalidArgument`."""
        check_name("experiment", experiment)
        check_name("run", run)
        return cls(checked_root(root), experiment, run)

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def directory(self) -> Path:
        """Holds the steps."""
        return self.root / self.experiment / self.run

    @property
    def attempts(self) -> Path:
        """Holds what is not committed yet."""
        return self.directory / ".attempts"

    @property
    def fence(self) -> Path:
        """Says which life of the run may save."""
        return self.directory / ".fence.json"

    def step(self, step: int) -> Path:
        """Return the directory of a committed step."""
        return self.directory / f"{_STEP_PREFIX}{step}"


def step_number(name: str) -> int | None:
    """Return the step whose directory is called *name*, None if that is not a step's name."""
    digits = name.removeprefix(_STEP_PREFIX)
    if name == digits or not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        return None
    return int(digits) if f"{int(digits)}" == digits else None


async def in_thread(
    function: Callable[[Where, *Ts], T], where: Where, *arguments: *Ts, may_leave: bool = False
) -> T:
    """Do in a thread what looks at a place, or at a root, or changes it; that is the first argument.

    Cancelled, this waits for the thread, or leaves it behind if it *may_leave*, as who only looks.
    Raises `Unavailable` if the filesystem fails.
    """
    root = where.root if isinstance(where, Place) else where
    try:
        return await threads.run(root, function, where, *arguments, may_leave=may_leave)
    except errors.CkptdError:
        raise  # some are `OSError` as well
    except OSError as error:
        raise failed(error) from error


def failed(error: OSError) -> errors.Unavailable:
    """Return the error for a filesystem that does not do what it was asked."""
    text = f"the place of the checkpoints failed: {error}; look at that filesystem"
    return errors.Unavailable(text)


def checked_root(root: str) -> Path:
    """Return *root* as a path; raises `InvalidArgument` unless it is absolute and plain."""
    path = Path(root)
    if not path.is_absolute() or ".." in path.parts or "\0" in root:
        text = f"the root {root!r} is not a plain absolute path; pass one that starts with `/`"
        raise errors.InvalidArgument(text)
    return path


def check_name(kind: str, name: str) -> None:
    """Raise `InvalidArgument` unless *name* can be one directory below the root."""
    length = len(name.encode(errors="surrogatepass"))
    if not 1 <= length <= NAME_BYTES_MAX:
        wrong = f"is {length} bytes long, and 1 to {NAME_BYTES_MAX} are allowed"
    elif name.startswith("."):
        wrong = "starts with a dot"
    elif "/" in name:
        wrong = "contains a slash"
    elif not _is_plain(name):
        wrong = "contains a control character"
    else:
        return
    raise errors.InvalidArgument(f"the {kind} name {name!r} {wrong}; choose another name")


def check_image_name(name: str) -> None:
    """Raise `InvalidArgument` unless *name* can be a file of a checkpoint."""
    length = len(name.encode(errors="surrogatepass"))
    if not 1 <= length <= IMAGE_NAME_BYTES_MAX:
        wrong = f"is {length} bytes long, and 1 to {IMAGE_NAME_BYTES_MAX} are allowed"
    elif name in {".", ".."} or "/" in name or not _is_plain(name):
        wrong = "is no plain file name"
    elif name == MANIFEST or name.endswith(SUMS):
        wrong = "is the daemon's to write"
    else:
        return
    raise errors.InvalidArgument(f"the image name {name!r} {wrong}; choose another name")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raise `InvalidArgument` if there are more than a manifest is made for."""
    if len(metrics) > METRICS_MAX:
        text = f"{len(metrics)} metrics are too many; pass {METRICS_MAX} at most"
        raise errors.InvalidArgument(text)
    size = sum(len(name.encode(errors="surrogatepass")) for name in metrics)
    if size > METRICS_BYTES_MAX:
        text = f"the names of {len(metrics)} metrics take {size} bytes"
        raise errors.InvalidArgument(f"{text}, and {METRICS_BYTES_MAX} are allowed; pass fewer")


def check_image_names(names: Sequence[str]) -> None:
    """Raise `InvalidArgument` unless *names* can be the images of one rank."""
    if len(names) > IMAGES_MAX:
        text = f"{len(names)} images of one rank are too many; {IMAGES_MAX} are allowed"
        raise errors.InvalidArgument(text)
    for name in names:
        check_image_name(name)
    if len(set(names)) < len(names):
        raise errors.InvalidArgument("two images of one rank have the same name; rename one")


def _is_plain(name: str) -> bool:
    return not any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in name)


def enter_to_read(
    place: Place, uid: int, allowed: tuple[Path, ...], seen: tuple[int, int]
) -> tuple[int, int]:
    """Return device and inode of the root, *seen* alike by a client who may read there."""
    check_user_below(place.root, uid, allowed)
    found = check_root(place.root, *seen)
    check_no_links(place, uid)
    return found


def enter_to_save(
    place: Place, uid: int, allowed: tuple[Path, ...], seen: tuple[int, int]
) -> tuple[int, int]:
    """Do as `enter_to_read` for a client who may save there; a missing root is made."""
    check_user_below(place.root, uid, allowed)
    found = make_root(place, *seen)
    check_no_links(place, uid)
    return found


def make_root(place: Place, device: int, inode: int) -> tuple[int, int]:
    """Create the root if it is missing, and raise unless we may save there; else as `check_root`.

    It need not be writable itself, like `/scratch`, if the run's directory, or what is there of
    its parents, is.
    """
    root = place.root
    if inode == 0:
        try:
            durable.make_dirs(root)
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
            text = f"the root {root} cannot be a directory: {error}"
            raise errors.InvalidArgument(text) from error
    found = check_root(root, device, inode)
    parents = (place.directory, place.directory.parent)
    there = next((path for path in parents if path.is_dir()), root)
    if not os.access(there, os.W_OK | os.X_OK):
        text = f"the daemon (uid {os.getuid()}) may not write in {there}; make it writable for it"
        raise errors.PermissionDenied(text)
    return found


def check_root(root: Path, device: int, inode: int) -> tuple[int, int]:
    """Return device and inode of *root*; raises unless it is the directory that the client sees.

    *device* and *inode* are what the client's stat said; inode 0 if it saw nothing there.
    """
    try:
        stat = root.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if inode == 0:
            raise errors.NotFound(f"there is no directory {root}; pass one") from error
        raise errors.FailedPrecondition(_elsewhere(root, device, inode, "nothing")) from error
    if inode != 0 and (stat.st_dev, stat.st_ino) != (device, inode):
        seen = f"device {stat.st_dev} inode {stat.st_ino}"
        raise errors.FailedPrecondition(_elsewhere(root, device, inode, seen))
    if not S_ISDIR(stat.st_mode):
        raise errors.InvalidArgument(f"the root {root} is not a directory; pass one")
    return stat.st_dev, stat.st_ino


def check_same_root(root: Path, joined_at: tuple[int, int]) -> None:
    """Raise `FailedPrecondition` if *root* is another directory now: its mount was lost, say.

    It is caused by what the kernel says of a handle that leads nowhere any more.
    """
    try:
        stat = root.stat()
        now = (stat.st_dev, stat.st_ino)
    except (FileNotFoundError, NotADirectoryError):
        now = None
    if now == joined_at or joined_at == (0, 0):
        return
    device, inode = joined_at
    seen = "gone" if now is None else f"device {now[0]} inode {now[1]}"
    text = f"{root} was device {device} inode {inode} when the job joined and is {seen} now"
    text = f"{text}; mount it again, or restart the job if that is meant"
    raise errors.FailedPrecondition(text) from OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def check_user_below(root: Path, uid: int, allowed: tuple[Path, ...]) -> None:
    """Raise `PermissionDenied` if *uid* is another user and *root* not below an *allowed* one."""
    if uid == os.getuid():
        return
    real = root.resolve()
    if not any(real.is_relative_to(one.resolve()) for one in allowed):
        text = f"user {uid} may not have this daemon work in {root}; add it to its `save_roots`"
        raise errors.PermissionDenied(text)


def check_no_links(place: Place, uid: int) -> None:
    """Raise `PermissionDenied` if another user's *place* leads out of its root by a link."""
    if uid != os.getuid() and place.directory.resolve() != place.root.resolve().joinpath(
        place.experiment, place.run
    ):
        text = f"{place} leads elsewhere by a symbolic link; remove the link"
        raise errors.PermissionDenied(text)


def _elsewhere(root: Path, device: int, inode: int, seen: str) -> str:
    return (
        f"{root} is device {device} inode {inode} for this process and {seen} for the daemon; "
        f"both must see the same directory: mount it in both at the same path"
    )
