"""Loading a checkpoint alike on every rank: the best copy first, then the next, then a step before."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ckptd.link.connection import Connection
from ckptd.saving import memory, suspects
from ckptd.saving.catalog import Catalog
from ckptd.saving.exchange import Exchange, settle
from ckptd.saving.keeping import Address
from ckptd.tensors import index, load
from ckptd.tensors.images import Images
from ckptd.tensors.index import Index
from ckptd.tensors.pieces import Piece
from ckptd.tensors.restore import Restore
from ckptd.values import Checkpoint
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Restoring:
    """Fills the state of every rank from one checkpoint."""

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange,
        catalog: Catalog,
        beside: Sequence[int],
    ) -> None:
        """*beside* are the ranks of this node, this one among them."""
        self._connection = connection
        self._exchange = exchange
        self._catalog = catalog
        self._beside = beside

    def load(self, state: dict[str, Any], found: Checkpoint, *, on_corrupt: str) -> Checkpoint:
        """Fill *state* from *found*, or from the newest good one before it if *on_corrupt* says so.

        Every rank returns the same, or raises.
        """
        if on_corrupt not in ("error", "previous"):
            text = f'on_corrupt is {on_corrupt!r}; pass "error" or "previous"'
            raise errors.InvalidArgument(text)
        first: errors.DataLoss | None = None
        while True:
            try:
                self._load(state, found)
            except errors.DataLoss as failure:
                failure.with_traceback(None)  # its frames would keep the step locked, as if read
                first = first or failure
                logger.error("step %d is not what was saved: %s", found.step, failure)
            else:
                return found
            before = self._agreed_before(found.step) if on_corrupt == "previous" else None
            if before is None:
                raise first
            found = before
            logger.warning("loading step %d instead", found.step)

    def _load(self, state: dict[str, Any], checkpoint: Checkpoint) -> None:
        with ExitStack() as stack:
            made: list[tuple[Images, Restore, list[Piece]]] = []

            def look() -> dict[str, Any]:
                images = stack.enter_context(self._images(checkpoint))
                stack.enter_context(self._told(checkpoint, images))
                restore = _asked(state, checkpoint, images)
                pieces = load.pieces(restore.wishes)
                made.append((images, restore, pieces))
                return {"chunks": _chunks(images, pieces)}

            said = self._alike(look)  # nothing is changed unless every rank can load
            ((images, restore, pieces),) = made
            place = self._share(images, said)
            self._alike(lambda: load.fill(images, pieces, place=place))
            self._alike(restore.finish)

    def _share(self, images: Images, said: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Have what several ranks here read come from the disk once; return this one's place."""
        shared = wanted_by_several([said[rank]["chunks"] for rank in self._beside])
        images.share(shared)
        if not any(shared.values()):
            return 0, 1
        return self._beside.index(self._exchange.rank), len(self._beside)

    @contextmanager
    def _images(self, checkpoint: Checkpoint) -> Iterator[Images]:
        uuid = checkpoint.uuid
        images = Images.open(checkpoint.path, uuid)
        with memory.lent(self._connection, uuid) as copies:
            images.prefer(copies, self._quarantine(uuid))
            yield images

    @contextmanager
    def _told(self, checkpoint: Checkpoint, images: Images) -> Iterator[None]:
        """Have the daemon note what proves corrupt meanwhile."""
        try:
            yield
        finally:
            address = Address.at(checkpoint)
            suspects.tell(lambda: self._connection, address, checkpoint.uuid, images.suspects)

    def _quarantine(self, uuid: str) -> Callable[[str, str], None]:
        return lambda image, why: memory.quarantine(self._connection, uuid, image, why)

    def _alike(self, act: Callable[[], dict[str, Any] | None]) -> list[dict[str, Any]]:
        """Do it on every rank, and return what each says of it.

        Raises `DataLoss` on all if it is all that some of them met.
        """
        mine: list[errors.DataLoss] = []

        def attempt() -> dict[str, Any]:
            try:
                return act() or {}
            except errors.DataLoss as failure:
                mine.append(failure)
                return {"lost": str(failure)}

        said = settle(self._exchange, attempt)
        if mine:
            raise mine[0]
        for rank, each in enumerate(said):
            if "lost" in each:
                raise errors.DataLoss(f"rank {rank}: {each['lost']}")
        return said

    def _agreed_before(self, step: int) -> Checkpoint | None:
        """Return the last good checkpoint before *step*, as rank 0 sees it."""

        def choose() -> dict[str, Any]:
            if self._exchange.rank != 0:
                return {}
            good = [one for one in self._catalog.committed() if one.corrupt is None]
            earlier = [one for one in good if one.step < step]
            return self._catalog.told(earlier[-1]) if earlier else {}

        chosen = settle(self._exchange, choose)[0]
        return self._catalog.heard(chosen) if chosen else None


def _chunks(images: Images, pieces: Sequence[Piece]) -> dict[str, str]:
    """Return which chunks of each image are to be read, as JSON can say it."""
    ranges = (piece.byte_range for piece in pieces)
    found = load.wanted_chunks(ranges, lambda name: images.sums(name).chunk_bytes)
    return {name: f"{chunks:x}" for name, chunks in found.items()}


def wanted_by_several(wanted: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Return which chunks of each image more than one rank wants: bit n is chunk n. Pure."""
    once: dict[str, int] = defaultdict(int)
    again: dict[str, int] = defaultdict(int)
    for of_rank in wanted:
        for name, text in of_rank.items():
            chunks = int(text, 16)
            again[name] |= once[name] & chunks
            once[name] |= chunks
    return again


def _asked(state: dict[str, Any], checkpoint: Checkpoint, images: Images) -> Restore:
    """Return what *state* asks for; raises `InvalidArgument` if the checkpoint lacks some of it."""
    where = str(checkpoint.path / index.NAME)
    found = Index.decode(images.read(index.NAME), where=where)
    restore = Restore(state, found, lambda name: load.read_object(images, found, name))
    restore.check()
    return restore
