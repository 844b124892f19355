"""`StorageReader`: what `torch.distributed.checkpoint` loads through ckptd with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader as AnyReader
from torch.futures import Future

from ckptd.dcp.sources import Source, encoded, open_source
from ckptd.tensors import load
from ckptd.tensors.pieces import Piece, pieces_of
from ckptd_proto import errors


class StorageReader(AnyReader):
    """Loads what ckptd, or torch's own `FileSystemWriter`, has saved; needs no daemon.

    Reads only the bytes that this rank asks for. What ckptd committed is compared with its
    checksums before it is used; elsewhere a warning says that nothing can be compared. Nothing in
    a checkpoint is executed: values other than plain data are refused.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Load from *path*; None: from what `checkpoint_id` of `dcp.load` says."""
        super().__init__()
        self._path = None if path is None else Path(path).absolute()
        self._source: Source | None = None

    @property
    def checkpoint_id(self) -> str:
        """The directory that is loaded from; empty if nobody has said."""
        return "" if self._path is None else str(self._path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Say whether *checkpoint_id* could be a directory."""
        return "://" not in os.fspath(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a load, from *checkpoint_id* if given."""
        if checkpoint_id is not None:
            self._path = Path(checkpoint_id).absolute()
        self._source = None

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Return what the checkpoint holds; raises `NotFound`, `DataLoss`, or as `load`."""
        if self._path is None:
            text = "nobody has said where to load from: StorageReader(path), or checkpoint_id"
            raise errors.InvalidArgument(text)
        self._source = open_source(self._path)
        return self._source.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **options: Any
    ) -> None:
        """Do nothing: `read_metadata` has opened what there is."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the same plan."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the same plans."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what this rank asks for; raises `DataLoss`: what was to be filled is void."""
        source = self._source
        assert source is not None  # torch reads the metadata first
        pieces: list[Piece] = []
        filled = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                name = item.storage_index.fqn
                planner.load_bytes(item, encoded(name, source.object(name)))
                continue
            target = planner.resolve_tensor(item).detach()
            filled.append((item, target))
            if target.numel():
                part = (tuple(item.storage_offsets), tuple(item.lengths))
                pieces += pieces_of(source.tensor(item.storage_index), part, target)
        load.fill(source.files, pieces)
        for item, target in filled:
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done
