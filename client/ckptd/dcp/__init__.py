"""ckptd for programs that use `torch.distributed.checkpoint`.

`dcp.save(state, storage_writer=ckptd.dcp.StorageWriter(path))` and the like; *path* is the
directory of the checkpoint: `<root>/<experiment>/<run>/step-<N>`.
"""

from __future__ import annotations

from ckptd.dcp.reader import StorageReader as StorageReader
from ckptd.dcp.saver import async_save as async_save
from ckptd.dcp.writer import StorageWriter as StorageWriter

__all__ = ["StorageReader", "StorageWriter", "async_save"]
