"""The shared directory as it is: what a `Course` wants done is done here, on the real filesystem."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from ckptd_daemon.save import places, threads
from ckptd_daemon.save.attempts import Attempt, Checkpoint
from ckptd_daemon.save.commit import removal
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.nodes import operations, protocol, receipts
from ckptd_daemon.save.nodes.operations import Failed, Op, Renamed, Steps, T
from ckptd_daemon.save.nodes.protocol import Course, Timing
from ckptd_daemon.save.places import SUMS, Place
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

Persisting = Callable[[Path], Awaitable[list[Receipt]]]
"""Makes this daemon's images durable in a directory that it makes anew."""


class Ground:
    """Takes courses to their ends."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing

    def course(self, attempt: Attempt) -> Course:
        """Return this daemon's way through *attempt*, which spans several."""
        assert attempt.members is not None, "one daemon needs no protocol"
        token = partial(secrets.token_hex, 4)
        return Course(attempt, attempt.members, self._timing, time.monotonic, token)

    async def walk(self, place: Place, steps: Steps[T], persisting: Persisting | None = None) -> T:
        """Do what *steps* want with *place*, and return where they lead."""
        answer: Any = None
        failed: Failed | None = None
        while True:
            try:
                op = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as end:
                led_to: T = end.value
                return led_to
            answer = failed = None
            try:
                answer = await self._do(place.root, op, persisting)
            except Failed as error:
                failed = error

    async def _do(self, root: Path, op: Op, persisting: Persisting | None) -> Any:
        try:
            match op:
                case operations.Wait(seconds):
                    return await anyio.sleep(seconds)
                case operations.Persist(path, aside):
                    assert persisting is not None, "only who finishes an attempt has its images"
                    return await self._persist(root, path, path / aside, persisting)
                case _:
                    return await threads.run(root, perform, op)
        except OSError as error:
            raise Failed(places.failed(error)) from error
        except errors.CkptdError as error:
            raise Failed(error) from error

    async def _persist(
        self, root: Path, directory: Path, aside: Path, persisting: Persisting
    ) -> tuple[Receipt, ...] | None:
        """Write the images aside, and give them their names when all are durable."""
        await threads.run(root, removal.delete, aside)
        try:
            images = await persisting(aside)
            await threads.run(root, _move_in, aside, directory, images)
        except (FileNotFoundError, NotADirectoryError):
            return None  # somebody gave the attempt up meanwhile
        except Exception:
            await threads.run(root, removal.delete, aside)
            raise
        return tuple(images)


def is_going(place: Place, attempt_id: str) -> bool:
    """Say whether several daemons have the attempt in hand, or had when they died."""
    return (place.attempts / attempt_id / protocol.RECEIPTS).is_dir()


def note_of(place: Place, attempt_id: str) -> errors.CkptdError | Checkpoint | None:
    """Return why several daemons gave the attempt up, if one of them has said."""
    data = _read(place.attempts / f"{attempt_id}{protocol.NOTE}")
    return None if data is None else receipts.decode_note(data, place)


def refresh(path: Path) -> None:
    """Believe nothing any more of the names in *path*; opening it has NFS ask who is in it now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        return


def perform(op: Op) -> Any:
    """Do *op*, which neither waits nor persists, on this machine's filesystem."""
    match op:
        case operations.Exists(path):
            return _exists(path)
        case operations.Read(path):
            return _read(path)
        case operations.Make(path):
            return durable.make_dirs(path)
        case operations.Write(path, data):
            return _write(path, data)
        case operations.Note(path, data):
            durable.make_dirs(path.parent)
            return durable.write_first(path, data)
        case operations.Rename(src, dst):
            return _rename(src, dst)
        case operations.Exchange(one, other):
            return _exchange(one, other)
        case operations.Refresh(path):
            return refresh(path)
        case operations.Sync(path):
            return _sync(path)
        case operations.Sweep(path):
            return _sweep(path)
        case _:
            raise AssertionError(f"{op} is not the filesystem's")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(path: Path, data: bytes) -> bool:
    try:
        durable.write_file(path, data)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _rename(src: Path, dst: Path) -> Renamed:
    try:
        durable.rename(src, dst)
    except (FileNotFoundError, NotADirectoryError):
        return Renamed.MISSING
    except OSError:
        if not _exists(dst):
            raise
        return Renamed.TAKEN
    return Renamed.DONE


def _exchange(one: Path, other: Path) -> Renamed:
    try:
        return Renamed.DONE if durable.exchange(one, other) else Renamed.UNSUPPORTED
    except (FileNotFoundError, NotADirectoryError):
        return Renamed.MISSING


def _sync(path: Path) -> None:
    try:
        durable.sync_dir(path)
    except (FileNotFoundError, NotADirectoryError):
        return


def _sweep(path: Path) -> None:
    try:
        if path.is_dir():
            removal.delete(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot delete %s: %s", path, error)


def _move_in(aside: Path, directory: Path, images: list[Receipt]) -> None:
    for image in images:
        for name in (image.image.name, f"{image.image.name}{SUMS}"):
            durable.rename(aside / name, directory / name)
            # of two links to one file, rename leaves both: what was linked again after a restart
            (aside / name).unlink(missing_ok=True)
    aside.rmdir()
    durable.sync_dir(directory)
