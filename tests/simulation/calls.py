"""How what daemons do reaches the directory: late, twice, failing before or after it was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.nodes import operations as ops
from ckptd_proto import errors
from simulation.clock import Clock
from simulation.directory import Dir, Directory
from simulation.nodes import Node, Part

FAULTS_S = 900.0  # after that all goes well


class Calls:
    """Drives the steps of daemons, each operation as the seed has it."""

    def __init__(
        self,
        rng: Random,
        clock: Clock,
        directory: Directory,
        tokens: Iterator[int],
        *,
        has_faults: bool,
        errors_rate: float,
        twice_rate: float,
        has_exchange: bool,
    ) -> None:
        self._rng = rng
        self._clock = clock
        self._directory = directory
        self._tokens = tokens
        self._has_faults = has_faults
        self._errors_rate = errors_rate
        self._twice_rate = twice_rate
        self._has_exchange = has_exchange

    def drive(
        self,
        node: Node,
        part: Part,
        steps: ops.Steps[Any],
        done: Callable[[Any, ops.Failed | None], None],
    ) -> None:
        life = node.life

        def proceed(answer: Any, failed: ops.Failed | None) -> None:
            if node.life != life or not node.is_up:
                return
            if node.paused_until > self._clock.now:
                self._clock.at(node.paused_until, lambda: proceed(answer, failed))
                return
            try:
                op = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as end:
                done(end.value, None)
                return
            except ops.Failed as uncaught:
                done(None, uncaught)
                return
            node.calls += 1
            if isinstance(op, ops.Wait):
                self._clock.at(self._clock.now + op.seconds, lambda: proceed(None, None))
            elif isinstance(op, ops.Persist):
                self._persist(node, life, part, op.path, proceed)
            else:
                self._call(node, life, op, proceed)

        proceed(None, None)

    def _call(
        self, node: Node, life: int, op: ops.Op, then: Callable[[Any, ops.Failed | None], None]
    ) -> None:
        fails = self._clock.now < FAULTS_S and self._rng.random() < self._errors_rate
        is_done = not fails or self._rng.random() < 0.5

        def act() -> None:
            if not is_done or (node.life != life and self._rng.random() < 0.5):
                answer = None  # it was killed before the call got out, or that failed
            elif isinstance(op, ops.Exchange) and not self._has_exchange:
                answer = ops.Renamed.UNSUPPORTED
            else:
                answer = node.view.perform(op)
            failed = ops.Failed(errors.Unavailable("EIO")) if fails else None
            self._clock.at(self._clock.now + self._delay(), lambda: then(answer, failed))

        self._clock.at(self._clock.now + self._delay(), act)
        if self._rng.random() < self._twice_rate and not isinstance(op, ops.Exchange):
            self._clock.at(
                self._clock.now + self._delay() + self._rng.uniform(0, 90), self._again(op)
            )

    def _persist(
        self,
        node: Node,
        life: int,
        part: Part,
        path: Path,
        then: Callable[[Any, ops.Failed | None], None],
    ) -> None:
        """Write aside, then move in: by name each time, as on a real filesystem."""
        members = part.attempt.members
        assert members is not None
        aside = path / f".{next(self._tokens)}"
        image = Image(f"__{members.own}_0.distcp", 1)
        content = f"{part.attempt.id} {members.own}".encode()

        def begin() -> None:
            if node.view.put(aside, Dir()):
                self._clock.at(self._clock.now + self._rng.uniform(0.1, 30), end)
            else:
                then(None, None)

        def end() -> None:
            if node.life != life and self._rng.random() < 0.7:
                return
            if self._clock.now < FAULTS_S and self._rng.random() < self._errors_rate:
                then(None, ops.Failed(errors.Unavailable("EIO while persisting")))
            elif node.view.find(aside) is None:
                then(None, None)
            else:
                node.view.perform(ops.Sweep(aside))
                node.view.put(path / image.name, content)
                then((Receipt(image, "p", "sums", 1),), None)

        self._clock.at(self._clock.now + self._delay(), begin)

    def _again(self, op: ops.Op) -> Callable[[], None]:
        """The same call once more, as a network that lost the answer makes it."""
        return lambda: self._directory.perform(op)

    def _delay(self) -> float:
        if self._has_faults and self._clock.now < FAULTS_S and self._rng.random() < 0.04:
            return self._rng.uniform(1, 120)
        return self._rng.uniform(0.001, 0.05)
