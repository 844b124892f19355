"""`StorageReader`: what `torch.distributed.checkpoint` loads through ckptd with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader as AnyReader
from torch.futures import Future

from ckptd.dcp import sharing
from ckptd.dcp.sources import Source, encoded, open_source
from ckptd.tensors import load
from ckptd.tensors.pieces import Piece, pieces_of
from ckptd_proto import errors


class StorageReader(AnyReader):
    """Loads what ckptd, or torch's own `FileSystemWriter`, has saved; needs no daemon.

    Reads only the bytes that this rank asks for. What still lies in the memory of this node's
    daemon, if one runs, is read there, all else from files: what several ranks of the node want
    by way of the page cache, so that the disk is read once. What ckptd committed is compared with
    its checksums before it is used; elsewhere a warning says that nothing can be compared. Nothing
    in a checkpoint is executed: values other than plain data are refused.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, socket: Path | None = None
    ) -> None:
        """Load from *path*; None: from what `checkpoint_id` of `dcp.load` says.

        *socket* is the daemon's; by default the usual one. None is started.
        """
        super().__init__()
        self._path = None if path is None else Path(path).absolute()
        self._socket = socket
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
        self._source = open_source(self._path, self._socket)
        return self._source.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **options: Any
    ) -> None:
        """Do nothing: `read_metadata` has opened what there is."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Have the plan tell the coordinator which chunks this rank reads."""
        source = self._source
        if source is None or not sharing.are_several():
            return plan
        return sharing.told(plan, source.wanted(plan.items))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Tell every rank what others of its node read, too."""
        return sharing.agreed(plans)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what this rank asks for; raises `DataLoss`: what was to be filled is void."""
        source = self._source
        assert source is not None  # torch reads the metadata first
        shared, place = sharing.heard(plan)
        try:
            with source.reading(shared):
                self._read(source, plan, planner, place)
        except errors.DataLoss:
            source.tell()
            raise
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(
        self, source: Source, plan: LoadPlan, planner: LoadPlanner, place: tuple[int, int]
    ) -> None:
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
        load.fill(source.files, pieces, place=place)
        for item, target in filled:
            planner.commit_tensor(item, target)
