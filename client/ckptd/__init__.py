"""ckptd: fetch a checkpoint once per node, save checkpoints off the training step.

Names are loaded when first used, so that `import ckptd` costs neither gRPC nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptd import aio as aio
    from ckptd import dcp as dcp
    from ckptd import errors as errors
    from ckptd.client import Client as Client
    from ckptd.fetching import fetch as fetch
    from ckptd.fetching import open as open
    from ckptd.many import fetch_many as fetch_many
    from ckptd.many import prefetch as prefetch
    from ckptd.reading.opening import open_tensors as open_tensors
    from ckptd.reading.tensors import Tensors as Tensors
    from ckptd.saving.checkpointer import Checkpointer as Checkpointer
    from ckptd.saving.failing import SaveFailed as SaveFailed
    from ckptd.saving.retention import Retention as Retention
    from ckptd.saving.save import Save as Save
    from ckptd.values import Blob as Blob
    from ckptd.values import DaemonStatus as DaemonStatus
    from ckptd.values import FatedSave as FatedSave
    from ckptd.values import FlightStatus as FlightStatus
    from ckptd.values import Miss as Miss
    from ckptd.values import Preempted as Preempted
    from ckptd.values import PreemptionStatus as PreemptionStatus
    from ckptd.values import Progress as Progress
    from ckptd.values import RunStatus as RunStatus
    from ckptd.values import SaveRecord as SaveRecord
    from ckptd.values import Setting as Setting
    from ckptd.values import TensorInfo as TensorInfo
    from ckptd.values import Verdict as Verdict

_WHERE = {
    "Checkpoint": "ckptd.values",
    "Checkpointer": "ckptd.saving.checkpointer",
    "Blob": "ckptd.values",
    "Client": "ckptd.client",
    "DaemonStatus": "ckptd.values",
    "FatedSave": "ckptd.values",
    "FlightStatus": "ckptd.values",
    "Miss": "ckptd.values",
    "Setting": "ckptd.values",
    "Verdict": "ckptd.values",
    "Preempted": "ckptd.values",
    "PreemptionStatus": "ckptd.values",
    "Progress": "ckptd.values",
    "fetch": "ckptd.fetching",
    "fetch_many": "ckptd.many",
    "open": "ckptd.fetching",
    "open_tensors": "ckptd.reading.opening",
    "prefetch": "ckptd.many",
    "Retention": "ckptd.saving.retention",
    "Save": "ckptd.saving.save",
    "RunStatus": "ckptd.values",
    "SaveRecord": "ckptd.values",
    "SaveFailed": "ckptd.saving.failing",
    "TensorInfo": "ckptd.values",
    "Tensors": "ckptd.reading.tensors",
}
_MODULES = ("aio", "dcp", "errors")


def __getattr__(name: str) -> object:
    """Load *name* from the module that defines it."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _MODULES:
        return import_module(f"ckptd.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("ckptd")
    raise AttributeError(f"module 'ckptd' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*_WHERE, *_MODULES, "__version__"})
