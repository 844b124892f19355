"""`StorageWriter`: what `torch.distributed.checkpoint` saves through ckptd with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter as AnyWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ckptd.dcp import items, runs
from ckptd.dcp.target import Target
from ckptd.saving.planning import Take
from ckptd.saving.save import Save
from ckptd.tensors.local import Local
from ckptd.tensors.plan import GlobalPlan
from ckptd.tensors.state import storage_of
from ckptd.tensors.values import Encoder
from ckptd_proto import errors


class StorageWriter(AnyWriter, AsyncStager):
    """Saves through the node's daemon: one copy to shared memory, one atomic commit.

    For `dcp.save(state, storage_writer=…)`, which returns when the checkpoint is committed, and
    `dcp.async_save(state, storage_writer=…)`, which returns when the state has been copied and
    whose future is done when it is committed. Make one per save, or give `dcp.save` another
    `checkpoint_id`.
    """

    _synchronize_after_execute = False  # `stage` has copied everything when it returns

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        metrics: Mapping[str, float] | None = None,
        frozen: Iterable[torch.Tensor] = (),
        process_group: dist.ProcessGroup | None = None,
        socket: Path | None = None,
    ) -> None:
        """Save to *path*.

        Args:
            path: `<root>/<experiment>/<run>/step-<N>`, which appears when it is committed. None:
                what `checkpoint_id` of `dcp.save` says.
            overwrite: Replace a checkpoint that is there, in one step.
            metrics: Numbers to find it by.
            frozen: Parameters that are not trained: they get files of their
                own, which later checkpoints of the run share on the disk while nothing changes.
            process_group: Of `dcp.async_save`, if it is given one; `dcp.save` needs none here.
            socket: The daemon's; by default the usual one, started if none runs.

        Raises:
            InvalidArgument: *path* is not called so.
        """
        super().__init__()
        self._target = None if path is None else Target.of(path)
        self._on_existing = "replace" if overwrite else "error"
        self._metrics = metrics
        self.frozen = frozenset(map(storage_of, frozen))
        """The storages of what is not expected to change."""
        self._group = process_group
        self._socket = socket
        self._planned: SavePlan | None = None
        self._save: Save | None = None
        self._is_staged = False  # and waits for torch to come and ask for it

    def __getstate__(self) -> NoReturn:
        text = (
            "a StorageWriter of ckptd belongs to its process: leave async_checkpointer_type out,"
            " for the daemon is the other process already"
        )
        raise errors.InvalidArgument(text)

    @property
    def checkpoint_id(self) -> str:
        """The directory that is saved to; empty if nobody has said."""
        return "" if self._target is None else str(self._target.path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Say whether *checkpoint_id* can be saved to."""
        try:
            Target.of(checkpoint_id)
        except errors.CkptdError:
            return False
        return True

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a save, to *checkpoint_id* if given."""
        target = self._target if checkpoint_id is None else Target.of(checkpoint_id)
        if self._is_staged and target != self._target:
            text = (
                f"the state was staged for {self.checkpoint_id} before torch said {checkpoint_id}:"
                " it is saved there; give the path to StorageWriter, or use ckptd.dcp.async_save"
            )
            raise errors.InvalidArgument(text)
        self._target = target

    def storage_meta(self) -> StorageMeta:
        """Return what planners may want to know."""
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    def stage(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the state to the daemon's memory; for `dcp.async_save`, every rank.

        Returns the same state: torch only looks at its names and shapes after this.
        """
        is_busy = self._is_staged

        def take(known: Encoder) -> Local:
            if is_busy:  # said here, where every rank hears of it
                text = "an earlier async_save of this StorageWriter is not done: make one per save"
                raise errors.FailedPrecondition(text)
            return items.of_state(state_dict, self.frozen, known)

        self._save, _ = self.begin(take, runs.ranks_of(self._group))
        self._is_staged = True
        return dict(state_dict)

    def synchronize_staging(self) -> None:
        """Return: `stage` has waited already."""

    def close(self) -> None:
        """Return: what is staged is the daemon's."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Refuse what would write files that `dcp.load` does not find."""
        if not kwargs.get("use_collectives", True):
            text = "with use_collectives=False ranks cannot commit together; leave it out"
            raise errors.InvalidArgument(text)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Remember all that this rank holds, before torch gives replicas to one rank each."""
        if plan.usable:
            self._planned = plan
        here = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return dataclasses.replace(plan, storage_data=here)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell every rank which ranks save together."""
        if not all(isinstance(plan.storage_data, int) for plan in plans):
            return plans  # unchanged: torch has kept the plans of before
        ranks = tuple(plan.storage_data for plan in plans)
        return [dataclasses.replace(plan, storage_data=ranks) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Copy this rank's part to the daemon's memory, unless `stage` has."""
        if self._is_staged:
            self._is_staged = False
            if not items.is_plain(planner):
                text = (
                    f"what was staged is the state itself and not what {type(planner).__name__}"
                    " makes of it: pass the planner to ckptd.dcp.async_save instead"
                )
                raise errors.InvalidArgument(text)
        else:
            whole = self._planned if items.is_plain(planner) and self._planned else plan
            take = partial(items.take, whole.items, whole.planner_data, planner, self.frozen)
            self._save, _ = self.begin(take, plan.storage_data)
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Wait until the checkpoint is committed; raises what went wrong."""
        save, self._save = self._save, None
        assert save is not None  # torch writes before it finishes
        save.result()

    def begin(self, take: Take, ranks: tuple[int, ...]) -> tuple[Save, GlobalPlan]:
        """Copy what *take* returns, as one of *ranks*; raises what is wrong on any of them.

        Returns the save, and the plan that all ranks have agreed on.
        """
        if self._target is None:
            text = "nobody has said where to save: StorageWriter(path), or checkpoint_id"
            raise errors.InvalidArgument(text)
        run = runs.run_of(self._target, ranks, socket=self._socket)
        save = run.save(
            take, step=self._target.step, metrics=self._metrics, on_existing=self._on_existing
        )
        if save.was_committed:
            text = f"{self._target.path} is committed already: pass overwrite=True to replace it"
            raise errors.AlreadyExists(text)
        return save, run.agreed.plan
