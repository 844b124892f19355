"""The daemon's shared memory in this process's address space."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict

from ckptd.link.connection import Connection
from ckptd.saving.pinning import Pinning
from ckptd.tensors.streams import Stream
from ckptd_proto.v1 import saves_pb2

_KEPT = 4  # a rank uses two slots in turn; older ones would keep memory that the daemon gave up


class Slots:
    """Maps each slot once, and keeps it: the next save finds its pages present."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mapped: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._instances: dict[str, str] = {}  # which life of the daemon has handed each over
        self._pinning = Pinning()
        self.touched_bytes = 0
        """What was mapped so far: touching it for the first time takes longer than a copy."""

    def memory(self, slot: saves_pb2.Slot) -> memoryview:
        """Return the slot's memory; maps and pre-faults it the first time."""
        mapped = self._mapped.get(slot.id)
        if mapped is None or len(mapped) != slot.size_bytes:
            self._pinning.unpin(slot.id)
            mapped = self._mapped[slot.id] = self._map(slot)
            self._instances[slot.id] = self._connection.daemon.instance
            self.touched_bytes += slot.size_bytes
        self._mapped.move_to_end(slot.id)
        while len(self._mapped) > _KEPT:
            self._drop(next(iter(self._mapped)))
        return memoryview(mapped)

    def pin(self, slot: saves_pb2.Slot, stream: Stream) -> None:
        """Have the device of *stream* copy to the slot's memory at full speed, if it can."""
        self._pinning.pin(slot.id, self._mapped[slot.id], stream)

    @property
    def mapped(self) -> list[str]:
        """The ids of the slots whose descriptors need not be handed over again."""
        return list(self._mapped)

    def drop_lost(self) -> None:
        """Unmap what an earlier life of the daemon has handed over; not while it is copied to.

        The daemon of now may have given that memory up: what is written there, or pinned, would
        take memory that nobody counts.
        """
        present = self._connection.daemon.instance
        for id in [id for id, instance in self._instances.items() if instance != present]:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._pinning.unpin(id)
        del self._instances[id], self._mapped[id]  # unmapped when its last view is gone

    def close(self) -> None:
        """Give every mapping back."""
        self._pinning.close()
        self._mapped.clear()
        self._instances.clear()

    def _map(self, slot: saves_pb2.Slot) -> mmap.mmap:
        fd = self._connection.descriptor(slot.token)
        try:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            return mmap.mmap(fd, slot.size_bytes, flags=flags)
        finally:
            os.close(fd)
