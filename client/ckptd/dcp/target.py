"""Which checkpoint a `checkpoint_id` means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckptd_proto import errors

_PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Target:
    """The directory `<root>/<experiment>/<run>/step-<N>`, taken apart."""

    root: Path
    experiment: str
    run: str
    step: int

    @classmethod
    def of(cls, checkpoint_id: str | os.PathLike[str]) -> Self:
        """Return what *checkpoint_id* means; raises `InvalidArgument`, saying what would do."""
        text = os.fspath(checkpoint_id)
        if "://" in text:
            raise errors.Unimplemented(f"checkpoints live in directories as yet, not at {text!r}")
        path = Path(text).absolute()
        digits = path.name.removeprefix(_PREFIX)
        is_step = digits != path.name and digits.isascii() and digits.isdigit()
        if not is_step or str(int(digits)) != digits:
            wish = f"{path.parent / _PREFIX}100"
            text = (
                f"the checkpoint {str(path)!r} is not called step-<N>: ckptd saves each as"
                f" <root>/<experiment>/<run>/step-<N>, for example {wish}"
            )
            raise errors.InvalidArgument(text)
        if len(path.parts) < 4:
            text = f"{str(path)!r} lies too high: put it at <root>/<experiment>/<run>/{path.name}"
            raise errors.InvalidArgument(text)
        run = path.parent
        return cls(run.parent.parent, run.parent.name, run.name, int(digits))

    @property
    def path(self) -> Path:
        """The directory that appears when the checkpoint is committed."""
        return self.root / self.experiment / self.run / f"{_PREFIX}{self.step}"
