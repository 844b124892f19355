"""Shared memory that the drivers of devices know, so that they copy to it at full speed."""

from __future__ import annotations

import logging
import mmap

import torch

from ckptd.tensors import streams
from ckptd.tensors.streams import Stream

logger = logging.getLogger(__name__)


class Pinning:
    """Registers mappings once; each is to be unpinned before it is unmapped."""

    def __init__(self) -> None:
        self._pinned: dict[str, tuple[Stream, list[int]]] = {}  # by name: where its pieces begin
        self._is_refused = False

    def pin(self, name: str, memory: mmap.mmap, stream: Stream) -> None:
        """Register *memory*, called *name*; again: nothing happens.

        If the driver refuses, copies are slower and block, and this is logged, once.
        """
        if name in self._pinned or self._is_refused:
            return
        address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        addresses: list[int] = []
        self._pinned[name] = stream, addresses
        try:
            for start, end in streams.pieces(address, len(memory)):
                stream.register(address + start, end - start)
                addresses.append(address + start)
        except RuntimeError as error:
            self._is_refused = True
            text = "saves from devices copy to memory that is not pinned, and block meanwhile: %s"
            logger.warning(text, error)
            self.unpin(name)

    def unpin(self, name: str) -> None:
        """Give up what was registered of *name*, if anything was."""
        if name in self._pinned:
            stream, addresses = self._pinned.pop(name)
            for address in addresses:
                try:
                    stream.unregister(address)
                except RuntimeError as error:  # the device is lost; nobody could mend that here
                    logger.warning("memory of the arena stays pinned: %s", error)

    def close(self) -> None:
        """Give all of it up."""
        for name in list(self._pinned):
            self.unpin(name)
