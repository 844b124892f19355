"""Which daemon has which ranks of an attempt: fixed when it opens. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Members:
    """The daemons of an attempt that spans several, that of rank 0 first, and which is this one."""

    names: tuple[str, ...]
    of_rank: tuple[int, ...]
    """By rank, the position of its daemon in `names`."""
    own: int

    @classmethod
    def told(
        cls, names: Sequence[str], of_rank: Sequence[int], *, own_name: str, world_size: int
    ) -> Self | None:
        """Return what a rank says of them, None if all ranks have this one daemon.

        Raises `InvalidArgument`, or `FailedPrecondition` if this daemon is none of them.
        """
        if not names:
            return None
        first = list(dict.fromkeys(of_rank))
        if len(set(names)) < len(names) or first != list(range(len(names))):
            text = f"{len(names)} daemons cannot have ranks in this order; this client is broken"
            raise errors.InvalidArgument(text)
        if not all(re.fullmatch(r"[0-9a-f]{12}", name) for name in names):
            raise errors.InvalidArgument("a daemon's name has 12 hex digits; this client is broken")
        if len(of_rank) != world_size:
            text = f"the daemons of {len(of_rank)} ranks are named in a world of {world_size}"
            raise errors.InvalidArgument(f"{text}; this client is broken")
        if own_name not in names:
            text = f"this daemon is {own_name} and was another one when the job began"
            raise errors.FailedPrecondition(f"{text}; make the Checkpointer anew on every rank")
        return cls(tuple(names), tuple(of_rank), list(names).index(own_name))

    @property
    def leads(self) -> bool:
        """Rank 0 is here."""
        return self.own == 0

    def ranks(self, member: int) -> tuple[int, ...]:
        """Return the ranks of the *member*-th daemon, rising."""
        return tuple(rank for rank, daemon in enumerate(self.of_rank) if daemon == member)

    def attempt_id(self, incarnation: str, sequence: int) -> str:
        """Return what every daemon calls the job's n-th save, without asking another."""
        return f"{sequence}-{self.names[0]}-{_unique(incarnation, str(sequence))}"


def is_attempt_of(incarnation: str, attempt_id: str) -> bool:
    """Say whether `Members.attempt_id` made the id, for that life of a run."""
    sequence, _, rest = attempt_id.partition("-")
    return rest.partition("-")[2] == _unique(incarnation, sequence)


def is_attempt_of_any(incarnations: Sequence[str], attempt_id: str) -> bool:
    """Say whether `Members.attempt_id` made the id, for one of those lives of a run."""
    return any(is_attempt_of(incarnation, attempt_id) for incarnation in incarnations)


def _unique(incarnation: str, sequence: str) -> str:
    return hashlib.sha256(f"{incarnation}\0{sequence}".encode()).hexdigest()[:16]
