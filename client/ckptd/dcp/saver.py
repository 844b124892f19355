"""`async_save`: as torch's own, without a thread that talks to other ranks behind your back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import StorageWriter as AnyWriter

from ckptd.dcp import items, runs
from ckptd.dcp.writer import StorageWriter
from ckptd.saving.planning import Take
from ckptd.saving.save import Save
from ckptd.tensors import metadata
from ckptd.tensors.local import Local
from ckptd.tensors.plan import GlobalPlan
from ckptd.tensors.values import Encoder
from ckptd_proto import errors


class PendingSave(Future[Metadata]):
    """Done when the checkpoint is committed; also what torch calls an `AsyncSaveResponse`."""

    def __init__(self, save: Save, plan: GlobalPlan) -> None:
        super().__init__()
        self._save = save
        self._plan = plan
        self.staging_completion: Future[None] = Future()
        """Done: the state has been copied when `async_save` returns."""
        self.staging_completion.set_result(None)
        self.set_running_or_notify_cancel()  # it cannot be called back
        save.when_done(self._end)

    @property
    def upload_completion(self) -> Future[Metadata]:
        """This future."""
        return self

    def result(self, timeout: float | None = None) -> Metadata:
        """Return the metadata once the checkpoint is committed; raises what went wrong."""
        try:
            return super().result(timeout)
        except errors.CkptdError:
            self._save.untold_failure()  # told now: the next save need not raise it
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what went wrong, None if the checkpoint is committed."""
        failure = super().exception(timeout)
        self._save.untold_failure()
        return failure

    def _end(self) -> None:
        if self._save.failure is not None:
            self.set_exception(self._save.failure)
        else:
            self.set_result(metadata.of_plan(self._plan))


def async_save(
    state_dict: Mapping[str, Any],
    *,
    checkpoint_id: str | os.PathLike[str] | None = None,
    storage_writer: AnyWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
    async_stager: AsyncStager | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> PendingSave:
    """Copy *state_dict* to the node's daemon and return; the daemon commits it.

    Every rank of *process_group* calls it. It needs no CPU backend, and nothing talks to other
    ranks after it has returned. Ranks share out what several of them hold by our own rules; of a
    *planner*, what it makes of the state on its own rank counts.

    Args:
        state_dict: What `torch.distributed.checkpoint.async_save` takes.
        checkpoint_id: `<root>/<experiment>/<run>/step-<N>`, which appears when it is committed.
        storage_writer: None, or a `ckptd.dcp.StorageWriter`.
        planner: None for the default.
        process_group: The ranks that save together; None for all.
        async_checkpointer_type: No matter: the daemon is the other process.
        async_stager: None, or the `storage_writer`.
        no_dist: This rank saves alone.
        use_collectives: True.

    Returns:
        A future of the checkpoint's metadata, with `staging_completion` and `upload_completion`.

    Raises:
        InvalidArgument: A value would not come back as it is; the message names its key.
        AlreadyExists: The checkpoint is there already.
        CkptdError: As `ckptd.Checkpointer.save`; also what went wrong with an earlier save.
    """
    writer = StorageWriter() if storage_writer is None else storage_writer
    if not isinstance(writer, StorageWriter):
        text = f"the writer is a {type(writer).__name__}: pass a ckptd.dcp.StorageWriter, or none"
        raise errors.InvalidArgument(text)
    if async_stager is not None and async_stager is not writer:
        text = f"a {type(async_stager).__name__} cannot stage into the daemon's memory: pass none"
        raise errors.InvalidArgument(text)
    writer.set_up_storage_writer(is_coordinator=False, use_collectives=use_collectives)
    if checkpoint_id is not None:
        writer.reset(checkpoint_id)
    ranks = runs.ranks_of(process_group, no_dist=no_dist)
    state = {
        name: value.state_dict() if isinstance(value, Stateful) else value
        for name, value in state_dict.items()
    }
    save, plan = writer.begin(_taking(state, planner, writer), ranks)
    return PendingSave(save, plan)


def _taking(state: dict[str, Any], planner: SavePlanner | None, writer: StorageWriter) -> Take:
    if planner is None:
        return partial(items.of_state, state, writer.frozen)

    def take(known: Encoder) -> Local:
        planner.set_up_planner(state, writer.storage_meta(), is_coordinator=False)
        plan = planner.create_local_plan()
        if not plan.usable:  # torch has it cached: then the whole of it is the planner's
            plan = planner.plan  # type: ignore[attr-defined]  # as torch's own planners have
        return items.take(plan.items, plan.planner_data, planner, writer.frozen, known)

    return take
