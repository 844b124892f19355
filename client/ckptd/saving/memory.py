"""What of a checkpoint still lies in this node's shared memory, lent by the daemon."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ckptd.link.connection import Connection, Stubs
from ckptd.tensors.copies import Copy
from ckptd.tensors.images import Images
from ckptd_proto import errors
from ckptd_proto.v1 import saves_pb2

logger = logging.getLogger(__name__)


@contextmanager
def lent(connection: Connection, uuid: str) -> Iterator[Mapping[str, Copy]]:
    """Give the images of attempt *uuid* that lie in memory; while inside they stay there.

    There are none if the daemon cannot lend: everything is in files as well.
    """
    with ExitStack() as stack:
        copies: dict[str, Copy] = {}
        try:
            copies = _borrow(connection, uuid, stack)
        except errors.CkptdError as error:
            logger.warning("loading from files, as the daemon lends no memory: %s", error)
        yield copies


@contextmanager
def preferred(images: Images, socket: Path | None) -> Iterator[None]:
    """Have *images* read, inside the block, what the daemon of this node has in memory.

    If none runs, or it has nothing of them, that is nothing.
    """
    uuid = images.attempt
    try:
        connection = Connection.running(socket)
    except errors.CkptdError as error:
        logger.debug("loading from files: %s", error)
        yield
        return
    with lent(connection, uuid) as copies:
        images.prefer(copies, partial(quarantine, connection, uuid))
        try:
            yield
        finally:
            images.prefer({}, partial(quarantine, connection, uuid))


def quarantine(connection: Connection, uuid: str, image: str, reason: str) -> None:
    """Log that an image in memory is not what was saved, and have it lent no more."""
    logger.error("%s of %s is corrupt in memory (%s); reading its file", image, uuid, reason)
    request = saves_pb2.QuarantineRequest(attempt=uuid, image=image, reason=reason)
    try:
        connection.call(lambda stubs: stubs.saves.Quarantine(request))
    except errors.CkptdError as error:
        logger.warning("the daemon could not note that %s is corrupt in memory: %s", image, error)


def _borrow(connection: Connection, uuid: str, stack: ExitStack) -> dict[str, Copy]:
    request = saves_pb2.LendRequest(attempt=uuid)

    def begin(stubs: Stubs) -> tuple[Any, saves_pb2.LendReply]:
        call: Any = stubs.saves.Lend(request)
        try:
            return call, next(call)
        except BaseException:
            call.cancel()
            raise

    call, reply = connection.call(begin)
    stack.callback(call.cancel)
    descriptors: dict[str, int] = {}
    for image in reply.images:
        if image.slot.id not in descriptors:
            fd = connection.descriptor(image.slot.token)
            descriptors[image.slot.id] = fd
            stack.callback(os.close, fd)
    return {
        image.image.name: Copy(descriptors[image.slot.id], image.offset) for image in reply.images
    }
