"""What the flights of the daemon share on their way to the bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyio import CapacityLimiter

from ckptd_daemon.config import Config
from ckptd_daemon.sources.brakes import Brakes
from ckptd_daemon.sources.source import Source
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.transfer.abilities import Abilities
from ckptd_daemon.transfer.hosts import Hosts
from ckptd_daemon.transfer.idle import Idle
from ckptd_daemon.transfer.pace import Pacer

GENERAL_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Means:
    """One budget of each: memory, streams, bandwidth, and the patience of hosts."""

    config: Config
    source: Source
    buffers: Buffers
    pacer: Pacer
    hosts: Hosts
    brakes: Brakes
    abilities: Abilities
    idle: Idle
    general: Buffers = field(init=False)
    """Of the general path: a slow reply holds its memory for long, and is not to hold up streams."""
    fetching: CapacityLimiter = field(init=False)
    connecting: CapacityLimiter = field(init=False)
    """An abandoned one keeps its place until it ends."""

    def __post_init__(self) -> None:
        streams_max = self.config.streams_max
        object.__setattr__(self, "general", Buffers(streams_max * GENERAL_BLOCK_BYTES))
        object.__setattr__(self, "fetching", CapacityLimiter(streams_max))
        object.__setattr__(self, "connecting", CapacityLimiter(streams_max))
