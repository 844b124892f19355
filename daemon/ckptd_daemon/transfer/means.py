"""What the flights of the daemon share on their way to the bytes."""

from __future__ import annotations

import anyio
from anyio import CapacityLimiter, to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.sources.brakes import Brakes
from ckptd_daemon.sources.source import Source
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.transfer.abilities import Abilities
from ckptd_daemon.transfer.edges import Edges
from ckptd_daemon.transfer.hosts import Hosts
from ckptd_daemon.transfer.idle import Idle
from ckptd_daemon.transfer.levels import Levels
from ckptd_daemon.transfer.pace import Limits, Pacer

BLOCKS_BYTES = 160 << 20  # of all streams together
GENERAL_BLOCK_BYTES = 1 << 20


class Means:
    """One budget of each: memory, streams, bandwidth, and the patience of hosts."""

    def __init__(self, config: Config, source: Source, brakes: Brakes) -> None:
        streams_max = config.streams_max
        self.config = config
        self.source = source
        self.brakes = brakes
        self.hosts = Hosts(start=config.streams, streams_max=streams_max)
        brakes.on_throttled = self.hosts.throttled
        self.pacer = Pacer(Limits(config.max_bytes_per_s, config.source_max_bytes_per_s))
        self.abilities = Abilities()
        self.idle = Idle()
        self.buffers = Buffers(BLOCKS_BYTES)
        self.general = Buffers(streams_max * GENERAL_BLOCK_BYTES, is_huge=False)
        """Of the general path: a slow reply holds its memory for long, and is not to hold up streams."""
        self.fetching = CapacityLimiter(streams_max)
        self.connecting = CapacityLimiter(streams_max)
        """An abandoned one keeps its place until it ends."""
        self.edges = Edges(CapacityLimiter(streams_max))
        self._levels = Levels(config.state_dir / "hosts.json")

    async def load(self) -> None:
        """Take over what an earlier life learned of hosts."""
        self.hosts.remember(await to_thread.run_sync(self._levels.load))

    async def keep(self) -> None:
        """Give back what nobody has used for a while; runs for ever, and closes all at its end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.buffers.keep)
            tasks.start_soon(self.general.keep)
            tasks.start_soon(self.idle.keep)
            tasks.start_soon(self._levels.keep, self.hosts)
