"""The proof that an attempt is complete: every image of the plan, exactly once, and no other. Pure.

The client proves the plan (every element of every tensor exactly once); this proves the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ckptd_daemon.save.attempts import Image
from ckptd_proto import errors

CHUNK_BYTES = 4 << 20  # what one checksum covers


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known of an image that has been made durable."""

    image: Image
    plan_hash: str
    sums_sha256: str
    """Of the file with its chunk checksums."""
    chunks: int


def check_complete(plan: Iterable[Image] | None, staged: Iterable[Image]) -> None:
    """Raise `InvalidArgument` unless *staged* is *plan*: same names and lengths, each once."""
    if plan is None:
        raise errors.InvalidArgument("rank 0 sealed without a plan; this client is broken")
    if wrong := _differences(tuple(plan), tuple(staged)):
        raise errors.InvalidArgument(
            f"what the ranks staged is not the plan: {wrong}; save again, and report it"
        )


def prove(
    plan: Iterable[Image] | None, plan_hash: str, receipts: Iterable[Receipt]
) -> dict[str, Receipt]:
    """Return the receipts by name if together they are *plan*; raises the defect in words."""
    receipts = tuple(receipts)
    check_complete(plan, (receipt.image for receipt in receipts))
    for receipt in receipts:
        name, size = receipt.image.name, receipt.image.size_bytes
        if receipt.plan_hash != plan_hash:
            raise errors.DataLoss(f"{name} belongs to another plan; save the step again")
        if not receipt.sums_sha256 or receipt.chunks != -(-size // CHUNK_BYTES):
            raise errors.DataLoss(f"{name} has no complete checksums; save the step again")
    return {receipt.image.name: receipt for receipt in receipts}


def _differences(plan: tuple[Image, ...], found: tuple[Image, ...]) -> str:
    wanted = {image.name: image.size_bytes for image in plan}
    times = Counter(image.name for image in found)
    twice = sorted({name for name, count in times.items() if count > 1})
    twice += sorted({name for name, n in Counter(i.name for i in plan).items() if n > 1})
    missing = sorted(wanted.keys() - times.keys())
    extra = sorted(times.keys() - wanted.keys())
    lengths = [
        f"{image.name} has {image.size_bytes} bytes instead of {wanted[image.name]}"
        for image in found
        if wanted.get(image.name, image.size_bytes) != image.size_bytes
    ]
    parts = [
        f"{words} {_some(names)}"
        for words, names in (("missing", missing), ("not planned", extra), ("twice", twice))
        if names
    ]
    return "; ".join([*parts, *lengths[:3]])


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
