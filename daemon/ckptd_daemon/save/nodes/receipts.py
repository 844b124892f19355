"""What the daemons of an attempt tell each other, in files: receipts, and why it was given up. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.places import Place
from ckptd_proto import errors

_FORMAT: Final = 1
_NOT_TOLD: Final = frozenset({"place", "flaw"})
"""Of a checkpoint: each daemon has a place of its own, and what is the same has no flaw."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A receipt: what one daemon has made durable of an attempt."""

    daemon: str
    images: tuple[Receipt, ...]
    plan: tuple[Image, ...] | None
    """Every image of the attempt; from the daemon of rank 0."""
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, attempt: Attempt, images: tuple[Receipt, ...]) -> Self:
        """Return the receipt of this daemon."""
        assert attempt.members is not None, "only daemons that are several need receipts"
        own = attempt.members.names[attempt.members.own]
        return cls(own, images, attempt.plan, attempt.metrics)


def encode(attempt: Attempt, delivery: Delivery) -> bytes:
    """Return the receipt as it is written."""
    record = {
        "format": _FORMAT,
        "attempt": attempt.id,
        "daemon": delivery.daemon,
        "images": [
            [one.image.name, one.image.size_bytes, one.plan_hash, one.sums_sha256, one.chunks]
            for one in delivery.images
        ],
        "plan": delivery.plan and [[image.name, image.size_bytes] for image in delivery.plan],
        "metrics": dict(delivery.metrics),
    }
    return json.dumps(record).encode()


def decode(data: bytes, attempt: Attempt, daemon: str) -> Delivery:
    """Return the receipt of *daemon*; raises `DataLoss` if that is not what it is."""
    try:
        record = json.loads(data)
        if record["format"] != _FORMAT:
            text = f"daemon {daemon} writes receipts of format {record['format']}"
            raise errors.Unimplemented(f"{text}, this one {_FORMAT}; run the same ckptd everywhere")
        if (record["attempt"], record["daemon"]) != (attempt.id, daemon):
            raise ValueError("it belongs elsewhere")
        images = tuple(
            Receipt(Image(name, size), plan_hash, sums, chunks)
            for name, size, plan_hash, sums, chunks in record["images"]
        )
        plan = record["plan"]
        return Delivery(
            daemon,
            images,
            None if plan is None else tuple(Image(name, size) for name, size in plan),
            {str(name): float(value) for name, value in record["metrics"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"the receipt of daemon {daemon} for {attempt.id} is damaged ({error!r})"
        raise errors.DataLoss(f"{text}; save again, and look at the filesystem") from error


def encode_note(attempt_id: str, incarnation: str, why: errors.CkptdError | Checkpoint) -> bytes:
    """Return why an attempt ended without a step of its own, as it is written for all its daemons.

    A checkpoint: what it would have become is there already.
    """
    record: dict[str, Any] = {
        "format": _FORMAT,
        "attempt": attempt_id,
        "incarnation": incarnation,
    }
    if isinstance(why, Checkpoint):
        fields = dataclasses.asdict(why)
        record["same_as"] = {name: fields[name] for name in fields if name not in _NOT_TOLD}
    else:
        record |= {"error": type(why).__name__, "reason": str(why)}
    if isinstance(why, errors.ResourceExhausted):
        record |= {"need_bytes": why.need_bytes, "free_bytes": why.free_bytes}
    return json.dumps(record).encode()


def decode_note(data: bytes, place: Place) -> errors.CkptdError | Checkpoint:
    """Return why an attempt ended."""
    try:
        record = json.loads(data)
        if "same_as" in record:
            return Checkpoint(place=place, **record["same_as"])
        numbers = {name: record[name] for name in ("need_bytes", "free_bytes") if name in record}
        return errors.rebuilt(str(record["error"]), str(record["reason"]), **numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return errors.Aborted(f"another node gave the save up, and its note is damaged: {error!r}")
