"""Attempts whose copies go on beside the training, from there to their seal."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from ckptd.saving.save import Save
from ckptd.tensors.copying import Copying
from ckptd_proto import errors


class Sealing:
    """Seals one attempt at a time, on a thread of its own, once all of it has been copied.

    Until then the step of any optimizer comes after the copies: of any, for not all that share
    a parameter need be in the state.
    """

    def __init__(self) -> None:
        self.is_torn = False
        """Whether something that calls no hooks has come before a copy."""
        self._copying: Copying | None = None  # what a step must come after
        self._sealed: Future[None] | None = None  # raises nothing but a defect of ours
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ckptd-seal")  # ends before Python
        self._hook: RemovableHandle | None = None

    def begin(
        self,
        save: Save,
        copying: Copying,
        *,
        seal: Callable[[], None],
        abort: Callable[[errors.CkptdError], None],
    ) -> None:
        """Call *seal* when *copying* is complete; *abort*, and fail *save*, if that cannot be."""
        if self._hook is None:
            self._hook = register_optimizer_step_pre_hook(self._join)
        self._copying = copying
        self._sealed = self._thread.submit(self._seal, save, copying, seal, abort)

    def wait(self) -> None:
        """Wait until nothing is left to seal; what went wrong is the save's to tell."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def close(self) -> None:
        """Wait, and leave the optimizers alone from now on."""
        self._thread.shutdown()
        if self._hook is not None:
            self._hook.remove()  # nowhere else: during a step torch goes through its hooks
            self._hook = None
        self.wait()

    def _join(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if (copying := self._copying) is not None:
            copying.join()

    def _seal(
        self,
        save: Save,
        copying: Copying,
        seal: Callable[[], None],
        abort: Callable[[errors.CkptdError], None],
    ) -> None:
        began_s = time.monotonic()
        try:
            try:
                copying.wait()
            finally:
                self._copying = None
                self.is_torn |= copying.is_torn
                save.copied_s = time.monotonic() - began_s
            seal()
        except errors.CkptdError as failure:
            abort(failure)
            save.fail(failure)
        except BaseException as defect:
            told = errors.Internal(f"step {save.step} could not be sealed: {defect!r}")
            abort(told)
            save.fail(told)  # who waits for it must not wait for ever
            raise
