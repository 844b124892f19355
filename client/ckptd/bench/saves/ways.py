"""The ways to save: ckptd's, and torch's own at their best settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import (
    AsyncCheckpointerType,
    AsyncSaveResponse,
    async_save,
    save,
)

import ckptd
from ckptd.bench.figures import OURS
from ckptd.bench.saves import targets
from ckptd.bench.saves.state import State

_EXPERIMENT, _RUN = "bench", "save"


class Pending(Protocol):
    """A save that goes on."""

    def done(self) -> bool:
        """Say whether it is durable, or has failed."""
        ...

    def check(self) -> None:
        """Raise what went wrong."""
        ...


class Way(Protocol):
    """How a rank saves."""

    def save(self, state: State, folder: Path, step: int) -> Pending:
        """Return as soon as the training may go on."""
        ...

    def read(self, fresh: dict[str, Any], folder: Path, step: int) -> Mapping[str, torch.Tensor]:
        """Return what this rank saved, read by torch alone; it may be in *fresh*."""
        ...


class _Done:
    def done(self) -> bool:
        return True

    def check(self) -> None:
        pass


class _Background:
    """A future of torch's, which tells of the rank's own part; the slowest rank counts."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def check(self) -> None:
        self._future.result()


class _Ours:
    def __init__(self, save: ckptd.Save) -> None:
        self._save = save

    def done(self) -> bool:
        return self._save.done()

    def check(self) -> None:
        self._save.result()


class _Ckptd:
    def __init__(self) -> None:
        self._checkpoints: ckptd.Checkpointer | None = None

    def save(self, state: State, folder: Path, step: int) -> Pending:
        if self._checkpoints is None:
            self._checkpoints = ckptd.Checkpointer(folder, experiment=_EXPERIMENT, run=_RUN)
            self._checkpoints.prepare(state)
        return _Ours(self._checkpoints.save(state, step=step))

    def read(self, fresh: dict[str, Any], folder: Path, step: int) -> Mapping[str, torch.Tensor]:
        load(fresh, checkpoint_id=folder / _EXPERIMENT / _RUN / f"step-{step}")
        return fresh

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()


class _Dcp:
    def save(self, state: State, folder: Path, step: int) -> Pending:
        save(dict(state), checkpoint_id=_folder(folder, step))
        return _Done()

    def read(self, fresh: dict[str, Any], folder: Path, step: int) -> Mapping[str, torch.Tensor]:
        load(fresh, checkpoint_id=_folder(folder, step))
        return fresh


class _DcpAsync(_Dcp):
    def __init__(self, kind: AsyncCheckpointerType, stager: DefaultStager | None) -> None:
        self._kind = kind
        self._stager = stager
        self._group = dist.new_group(backend="gloo")  # on the training's own it may deadlock

    def save(self, state: State, folder: Path, step: int) -> Pending:
        saved = async_save(
            dict(state),
            checkpoint_id=_folder(folder, step),
            process_group=self._group,
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )
        if isinstance(saved, AsyncSaveResponse):
            saved.staging_completion.result()  # the step must not change what is being copied
            return _Background(saved.upload_completion)
        return _Background(saved)


class _Torch:
    def save(self, state: State, folder: Path, step: int) -> Pending:
        path = _folder(folder, step)
        path.mkdir(parents=True, exist_ok=True)
        with (path / f"{dist.get_rank()}.pt").open("wb") as file:
            torch.save({name: tensor.to_local() for name, tensor in state.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        return _Done()

    def read(self, fresh: dict[str, Any], folder: Path, step: int) -> Mapping[str, torch.Tensor]:
        found: Mapping[str, torch.Tensor] = torch.load(
            _folder(folder, step) / f"{dist.get_rank()}.pt", mmap=True
        )
        return found


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


@contextmanager
def _ckptd() -> Iterator[Way]:
    way = _Ckptd()
    yield way
    way.close()


@contextmanager
def _plain(way: Callable[[], Way]) -> Iterator[Way]:
    yield way()


@contextmanager
def _dcp_async(kind: AsyncCheckpointerType, *, cached: bool) -> Iterator[Way]:
    """Give torch's own background saves, by default as they come, *cached* at their best.

    A stager that is kept keeps its memory: shared, and pinned where there is a GPU to copy from.
    """
    stager = None
    if cached:
        pins = torch.cuda.is_available()
        options = StagingOptions(
            use_pinned_memory=pins,
            use_shared_memory=True,
            use_async_staging=False,
            use_non_blocking_copy=pins,
        )
        stager = DefaultStager(options)
    yield _DcpAsync(kind, stager)
    if stager is not None:
        stager.close()


_THREAD, _PROCESS = AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS
WAYS: Mapping[str, Callable[[], AbstractContextManager[Way]]] = {
    OURS: _ckptd,
    targets.ASYNC: partial(_dcp_async, _THREAD, cached=False),
    "dcp-async-kept": partial(_dcp_async, _THREAD, cached=True),
    "dcp-process": partial(_dcp_async, _PROCESS, cached=False),
    "dcp-process-kept": partial(_dcp_async, _PROCESS, cached=True),
    "dcp-save": partial(_plain, _Dcp),
    "torch-save": partial(_plain, _Torch),
}
"""By the names that tables show."""
