"""One save, from the moment it is staged until it is committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ckptd.link.connection import Connection, Stubs
from ckptd.saving.catalog import checkpoint_of
from ckptd.saving.steps import Window
from ckptd.values import Checkpoint, SaveRecord
from ckptd_proto import errors
from ckptd_proto.v1 import saves_pb2

_STAGED = frozenset(
    {
        saves_pb2.ATTEMPT_STATE_STAGED,
        saves_pb2.ATTEMPT_STATE_LOCAL,
        saves_pb2.ATTEMPT_STATE_DURABLE,
        saves_pb2.ATTEMPT_STATE_COMMITTED,
    }
)
_PAUSE_S = 0.2
_FINAL = frozenset({saves_pb2.ATTEMPT_STATE_COMMITTED, saves_pb2.ATTEMPT_STATE_ABORTED})


class Save:
    """A checkpoint on its way; it gets there whatever becomes of this process."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.blocked_s = 0.0
        """How long the call to `save()` took."""
        self.plan_s = 0.0
        """How long of it the plan took."""
        self.copied_s = 0.0
        """How long after `save()` had returned what optimizers own on a GPU was being copied."""
        self.touched_bytes = 0
        """Memory that this save waited for, to be touched for the first time; 0 if prepared."""
        self.steps: Window | None = None
        """The training steps that it has seen, if something in the state tells them."""
        self.note = ""
        """What the daemon says besides, such as that its node is about to go away."""
        self.was_committed = False
        """This job had committed the step before: nothing was copied."""
        self._lock = threading.Lock()  # guards what follows
        self._staged = threading.Event()
        self._done = threading.Event()
        self._checkpoint: Checkpoint | None = None
        self._phases: saves_pb2.Attempt | None = None
        self._failure: errors.CkptdError | None = None
        self._is_told = False
        self._is_skipped = False
        self._superseded_by: int | None = None
        self._callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        if not self._done.is_set():
            state = "staged" if self._staged.is_set() else "being staged"
        else:
            state = "failed" if self._failure else "committed"
            state = "skipped" if self._is_skipped else state
        return f"<Save step {self.step} [{state}]>"

    def staged(self) -> bool:
        """Say whether every rank's part is out of the ranks' hands: their death loses nothing."""
        return self._staged.is_set()

    @property
    def skipped(self) -> bool:
        """Whether it was not made, as the Checkpointer's `when_full` says: that is no failure."""
        return self._is_skipped

    @property
    def superseded_by(self) -> int | None:
        """The later step that took its place, as `when_full` says: that is no failure."""
        return self._superseded_by

    def done(self) -> bool:
        """Say whether `result` would return, or raise, at once."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Return the checkpoint once it is committed.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            DeadlineExceeded: It is not committed yet; it goes on.
            ResourceExhausted: It was skipped, or there is no room; nothing is listed.
            Aborted: A rank died, or a later save superseded it; nothing is listed.
            CkptdError: What went wrong; nothing is listed.
        """
        if not self._done.wait(timeout):
            note = f" ({self.note})" if self.note else ""
            text = f"step {self.step} is not committed after {timeout:g} s{note}"
            raise errors.DeadlineExceeded(f"{text}; it goes on, ask again")
        with self._lock:
            self._is_told = True
            if self._failure is not None:
                raise self._failure
            assert self._checkpoint is not None  # done means either
            return self._checkpoint

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it is done; say whether it is."""
        return self._done.wait(timeout_s)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call *callback* once `result` would return or raise at once; now, if it would."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    @property
    def failure(self) -> errors.CkptdError | None:
        """What went wrong, if it is done; whether somebody has asked is another matter."""
        with self._lock:
            return self._failure

    @property
    def record(self) -> SaveRecord | None:
        """Where its time went; None until it is committed, or if its daemon has not seen it all."""
        with self._lock:
            phases, checkpoint = self._phases, self._checkpoint
        if phases is None or checkpoint is None or not phases.HasField("persist_s"):
            return None
        return SaveRecord(
            step=self.step,
            size_bytes=checkpoint.size_bytes,
            blocked_s=self.blocked_s,
            plan_s=self.plan_s,
            stage_s=self.blocked_s - self.plan_s,
            touched_bytes=self.touched_bytes,
            copied_s=self.copied_s,
            waited_s=phases.waited_s,
            persist_s=phases.persist_s,
            commit_s=phases.commit_s,
            step_inflation=None if self.steps is None else self.steps.inflation,
        )

    def untold_failure(self) -> errors.CkptdError | None:
        """Return what went wrong, once, if nobody has asked for the result."""
        with self._lock:
            if self._is_told or self._failure is None:
                return None
            self._is_told = True
            return self._failure

    def succeed(self, checkpoint: Checkpoint) -> None:
        """Note that it is committed."""
        self._staged.set()
        self._end(checkpoint, None)

    def fail(self, failure: errors.CkptdError) -> None:
        """Note that it will not be."""
        self._end(None, failure)

    def _end(self, checkpoint: Checkpoint | None, failure: errors.CkptdError | None) -> None:
        with self._lock:
            self._checkpoint, self._failure = checkpoint, failure
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def skip(self, reason: str) -> None:
        """Note that it is not made, because its user would have it so."""
        self._is_skipped = self._is_told = True
        self.fail(errors.ResourceExhausted(reason))

    def watch(self, connection: Connection, request: saves_pb2.WatchRequest) -> None:
        """Follow the attempt on a thread of its own until it has ended."""
        name = f"ckptd-save-{self.step}"
        arguments = (connection, request)
        threading.Thread(target=self._follow, args=arguments, name=name, daemon=True).start()

    def _follow(self, connection: Connection, request: saves_pb2.WatchRequest) -> None:
        def watch(stubs: Stubs) -> saves_pb2.Attempt:
            last = saves_pb2.Attempt()
            for last in stubs.saves.Watch(request):
                self.note = last.note
                if last.state in _STAGED:
                    self._staged.set()
            return last

        try:
            last = connection.call(watch)
            while last.state not in _FINAL:  # the daemon ended the call, not the attempt
                time.sleep(_PAUSE_S)
                last = connection.call(watch)
        except errors.CkptdError as error:
            self.fail(error)
            return
        if last.state == saves_pb2.ATTEMPT_STATE_COMMITTED:
            with self._lock:
                self._phases = last
            self.succeed(checkpoint_of(last.checkpoint))
            return
        if last.HasField("superseded_by"):
            self._superseded_by, self._is_told = last.superseded_by, True
        self.fail(errors.rebuilt(last.error, last.reason))


def failed(step: int, failure: errors.CkptdError) -> Save:
    """Return a save that failed at once, and whose failure has been told."""
    save = Save(step)
    save.fail(failure)
    save.untold_failure()
    return save
