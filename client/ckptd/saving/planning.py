"""What all ranks are about to save: agreed on once, and again only when it changed."""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptd.saving.exchange import Exchange, settle
from ckptd.tensors import index, metadata, plan
from ckptd.tensors.local import Local
from ckptd.tensors.plan import GlobalPlan, LocalPlan, Placed
from ckptd.tensors.values import Encoder
from ckptd_proto import errors

OWN: Final = frozenset({"sequence", "room", "let_down", "in_a_row"})
"""Of a header, what each rank knows for itself."""
_DOUBTS_MAX = 10  # warnings about one plan

Header = Callable[[], dict[str, Any]]
"""Gives what a rank says first; if it raises, every rank does."""
Take = Callable[[Encoder], Local]
"""Returns what a rank holds; raises `InvalidArgument`, naming the key, for what cannot be saved."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """A global plan, and this rank's part of it."""

    plan: GlobalPlan
    mine: tuple[Placed, ...]
    documents: Mapping[str, bytes]
    """What the plan alone decides, by image name: rank 0 has it and writes it."""

    @property
    def hash(self) -> str:
        """The same on every rank, and for the same plan in another life of the job."""
        return self.plan.hash

    def images(self, rank: int) -> dict[str, int]:
        """Return the sizes of the images that *rank* writes, by name."""
        images = dict(self.plan.images[rank])
        if rank == 0:
            images |= {name: len(document) for name, document in self.documents.items()}
        return images

    def all_images(self) -> dict[str, int]:
        """Return the sizes of all images of the checkpoint, as rank 0 knows them."""
        world = range(len(self.plan.images))
        return {name: size for rank in world for name, size in self.images(rank).items()}


class Planner:
    """Agrees with the other ranks; keeps the last plan."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._encoder = Encoder()
        self._hashes: list[str] = []  # of the local plans that `_agreed` was made from
        self._agreed: Agreed | None = None

    @property
    def agreed(self) -> Agreed:
        """What the ranks agreed on last."""
        assert self._agreed is not None, "nothing yet"
        return self._agreed

    def agree(
        self, take: Take, header: Header, *, is_kept: bool = True
    ) -> tuple[Agreed, Local, list[dict[str, Any]]]:
        """Return the plan, this rank's part, and the headers of all ranks.

        What the ranks hold alike is compared if it *is_kept*. Every entry of the headers but those
        of `OWN` must be the same on every rank; raises `InvalidArgument` telling who said what.
        """
        local: Local | None = None

        def say() -> dict[str, Any]:
            nonlocal local
            first = header()
            local = take(self._encoder)
            known = hashlib.sha256("".join(self._hashes).encode()).hexdigest()
            said = {"plan": local.plan.hash(), "known": known, "contents": self._contents(local)}
            return {"header": first, **said}

        heard = settle(self._exchange, say)
        assert local is not None  # `say` has run, or `settle` has raised
        headers = [each["header"] for each in heard]
        _check_agreement(headers)
        hashes = [each["plan"] for each in heard]
        agreed = self._agreed
        if agreed is None or not self._still_holds(heard, hashes):
            agreed = self._agree_anew(local, is_kept=is_kept)
            self._agreed, self._hashes = agreed, hashes
        return agreed, local, headers

    def _still_holds(self, heard: list[dict[str, Any]], hashes: list[str]) -> bool:
        """Say whether every rank has the plan of before; the same answer on every rank."""
        if any(each["known"] != heard[0]["known"] for each in heard) or hashes != self._hashes:
            return False
        assert self._agreed is not None
        for number, ranks in enumerate(self._agreed.plan.shared):
            if len({heard[rank]["contents"][number] for rank in ranks}) > 1:
                return False  # the full exchange finds out which key it is
        return True

    def _agree_anew(self, local: Local, *, is_kept: bool) -> Agreed:
        payload = zlib.compress(local.plan.encode(), 1)
        gathered = self._exchange.all_gather(payload)
        plans = [LocalPlan.decode(zlib.decompress(each)) for each in gathered]
        agreed = plan.agree(plans, is_kept=is_kept)
        documents: dict[str, bytes] = {}
        if self._exchange.rank == 0:
            for doubt in agreed.doubts[:_DOUBTS_MAX]:
                warnings.warn(doubt, stacklevel=2)
            documents = {metadata.NAME: metadata.encode(agreed), index.NAME: index.encode(agreed)}
        return Agreed(agreed, tuple(agreed.of_rank(self._exchange.rank)), documents)

    def _contents(self, local: Local) -> list[str]:
        """Hash, per group of ranks, what the ranks of the group must hold alike."""
        if self._agreed is None:
            return []
        content = {entry.name: entry.content for entry in local.plan.entries}
        return [
            hashlib.sha256("\0".join(content.get(name, "") for name in names).encode()).hexdigest()
            if self._exchange.rank in ranks
            else ""
            for ranks, names in self._agreed.plan.shared.items()
        ]


def _check_agreement(headers: list[Mapping[str, Any]]) -> None:
    for name in headers[0]:
        if name in OWN:
            continue
        said: dict[str, list[int]] = {}
        for rank, header in enumerate(headers):
            said.setdefault(str(header[name]), []).append(rank)
        if len(said) > 1:
            groups = ", ".join(
                f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}"
                for value, ranks in said.items()
            )
            text = f"the ranks disagree on the {name}: {groups}; call save() alike on every rank"
            raise errors.InvalidArgument(text)
