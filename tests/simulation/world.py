"""Nodes, their daemons and one shared directory, in virtual time: the protocol is the real one.

Everything follows from the seed: how long each call takes, which fails before or after it was
done, comes twice, or overtakes another; how long a node believes what it has seen; who is killed,
paused, lost or restarted, and when.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from random import Random

from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, JobKey, taken
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.protocol import Course, Outcome, Timing
from ckptd_proto import errors
from simulation.calls import FAULTS_S, Calls
from simulation.clock import Clock
from simulation.directory import Directory, View
from simulation.nodes import PLACE, Node, Part, repair
from simulation.promises import Broken, Promises

TIMING = Timing(poll_s=0.5, poll_max_s=15.0, takeover_s=30.0, appear_s=60.0, patience_s=300.0)
LAGS_S = (0.0, 5.0, 60.0)  # how long a node believes a name; NFS, left alone, a minute
QUIET_S = 20_000.0  # after the last fault every attempt has ended


class World:
    """One run, from a seed."""

    def __init__(
        self,
        seed: int,
        *,
        course: type[Course] = Course,
        nodes: int | None = None,
        has_faults: bool = True,
        lag_s: float | None = None,
    ) -> None:
        self._rng = Random(seed)
        self._clock = Clock()
        self._tokens = count()
        self._course = course
        self._has_faults = has_faults
        errors_rate = self._rng.choice([0.0, 0.02, 0.1]) if has_faults else 0.0
        twice_rate = self._rng.choice([0.0, 0.05]) if has_faults else 0.0
        has_exchange = self._rng.random() < 0.5
        size = nodes or self._rng.choice([2, 2, 2, 3, 3, 4, 4, 5, 6, 8, 16])
        self._has_errors = errors_rate > 0
        self.promises = Promises()
        self.directory = Directory(self.promises.named)
        self.directory.perform(ops.Make(PLACE.attempts))
        self._calls = Calls(
            *(self._rng, self._clock, self.directory, self._tokens),
            has_faults=has_faults,
            errors_rate=errors_rate,
            twice_rate=twice_rate,
            has_exchange=has_exchange,
        )
        lag_of_seed_s = self._rng.choice(LAGS_S)
        self._lag_s = lag_of_seed_s if lag_s is None else lag_s
        self.nodes = [
            Node(f"{number:012x}", self._view(), newest_first=self._rng.random() < 0.2)
            for number in range(size)
        ]
        self.ended_at = 0.0

    def _view(self) -> View:
        return View(self.directory, lambda: self._clock.now, self._lag_s)

    def run(self, attempts: int = 4) -> None:
        """Let some saves happen, with faults; raises `Broken`."""
        self._plan_saves(attempts)
        if self._has_faults:
            self._plan_faults()
        self._clock.run(FAULTS_S + QUIET_S)
        self.promises.check_end(self.directory, self.nodes, has_errors=self._has_errors)

    # saves

    def _plan_saves(self, attempts: int) -> None:
        begin, life, sequence, members = 0.0, 0, 0, self._members()
        for number in range(attempts):
            begin += self._rng.uniform(1, 60)
            if number and self._rng.random() < 0.25:
                life, sequence, members = life + 1, 0, self._members()
            step = self._rng.choice([7, 7, 8])
            replaces = self._rng.random() < 0.4
            self._clock.at(
                begin, lambda a=(life, sequence, step, replaces, members): self._save(*a)
            )
            sequence += 1

    def _members(self) -> tuple[str, ...]:
        size = self._rng.randint(2, len(self.nodes)) if self._has_faults else len(self.nodes)
        return tuple(node.name for node in self._rng.sample(self.nodes, size))

    def _save(
        self, life: int, sequence: int, step: int, replaces: bool, names: tuple[str, ...]
    ) -> None:
        self.promises.present = life
        if sequence == 0 and life:  # the first save of a later life fences the earlier ones
            fence = {
                "format": 1,
                "present": f"life {life}",
                "fenced": [f"life {each}" for each in range(life)],
            }
            self.directory.put(PLACE.fence, json.dumps(fence).encode())
        plan = tuple(Image(f"__{rank}_0.distcp", 1) for rank in range(len(names)))
        incarnation = f"life {life}"
        for own, name in enumerate(names):
            members = Members(names, tuple(range(len(names))), own)
            job = JobKey("j", PLACE, incarnation, len(names), 0)
            attempt_id = members.attempt_id(incarnation, sequence)
            attempt = Attempt(attempt_id, job, sequence, step, "p", replaces, members)
            if own == 0:
                attempt = attempt.with_seal(0, (plan[0],), plan=plan)
            self.promises.attempts[attempt_id] = attempt
            node = next(node for node in self.nodes if node.name == name)
            part = Part(attempt)
            soon = self._clock.now + self._rng.uniform(0.001, 0.9)
            begin = self._claim if sequence == 0 and life else self._open
            self._clock.at(soon, lambda n=node, p=part, b=begin: b(n, p))

    def _claim(self, node: Node, part: Part) -> None:
        """End what earlier lives have left, as `commit.repair` and `elsewhere` do; then open."""
        if self._runs(node):
            self._calls.drive(
                node,
                part,
                repair(node, part, self._tokens),
                lambda *_: self._open(node, part),
            )

    def _open(self, node: Node, part: Part) -> None:
        if not self._runs(node):
            return  # its ranks are told by the process group, or by nobody
        node.parts.append(part)
        if (found := self._standing(node, part.attempt)) is not None and not part.attempt.replaces:
            same = part.attempt.is_same(found)
            self._give_up(node, part, found if same else taken(found))
            return
        seal = self._sealing(node, part)
        if part.attempt.members is not None and part.attempt.members.leads:
            course = self._walk(part)

            def created(outcome: Outcome | None, failed: ops.Failed | None) -> None:
                if failed is not None:
                    self._give_up(node, part, failed.failure)
                elif outcome is not None:
                    self._end(node, part, outcome)
                else:
                    seal()

            self._calls.drive(node, part, course.create(), created)
        else:
            seal()

    def _sealing(self, node: Node, part: Part) -> Callable[[], None]:
        life = node.life
        dies = self._has_faults and self._rng.random() < 0.08

        def seal() -> None:
            if node.life != life or part.outcome is not None:
                return
            earlier = node.parts[: node.parts.index(part)]
            if node.paused_until > self._clock.now:
                self._clock.at(node.paused_until, seal)
            elif any(each.is_staging for each in earlier):
                self._clock.at(self._clock.now + 1, seal)  # a rank seals its saves in order
            elif dies:
                reason = f"rank of {node.name} died before it had staged"
                self._give_up(node, part, errors.Aborted(reason))
            else:
                part.is_sealed = True
                self._finish_next(node)

        return lambda: self._clock.at(self._clock.now + self._rng.uniform(0.1, 20), seal)

    def _finish_next(self, node: Node) -> None:
        """Those of one run deliver one at a time, and those of one step end in order."""
        if node.delivers_in == node.life:
            return
        waiting = [part for part in node.parts if self._may_begin(node, part)]
        if not waiting:
            return
        part = waiting[-1 if node.newest_first else 0]
        node.delivers_in = part.begun_in = node.life
        course = self._walk(part)

        def delivered(outcome: Outcome | None, failed: ops.Failed | None) -> None:
            if failed is not None:
                raise Broken(f"{node.name} cannot deliver {part.attempt.id}: {failed}")
            node.delivers_in = -1
            if outcome is None:
                self._calls.drive(node, part, course.conclude(), concluded)
                self._finish_next(node)
            else:
                self._end(node, part, outcome)

        def concluded(outcome: Outcome | None, failed: ops.Failed | None) -> None:
            if failed is not None or outcome is None:
                raise Broken(f"{node.name} led nowhere with {part.attempt.id}: {failed}")
            self._end(node, part, outcome)

        self._calls.drive(node, part, course.deliver(), delivered)

    def _may_begin(self, node: Node, part: Part) -> bool:
        if not part.is_sealed or part.outcome is not None or part.begun_in == node.life:
            return False
        earlier = node.parts[: node.parts.index(part)]
        return not any(
            each.attempt.step == part.attempt.step and each.is_sealed and each.outcome is None
            for each in earlier
        )

    def _standing(self, node: Node, attempt: Attempt) -> Checkpoint | None:
        manifest = node.view.find(PLACE.step(attempt.step) / "manifest.json")
        return manifests.decode(manifest, PLACE) if isinstance(manifest, bytes) else None

    def _give_up(self, node: Node, part: Part, why: Outcome) -> None:
        part.is_doomed = True

        def given_up(outcome: Outcome | None, failed: ops.Failed | None) -> None:
            assert failed is None and outcome is not None
            self._end(node, part, outcome)

        self._calls.drive(node, part, self._walk(part).give_up(why), given_up)

    def _end(self, node: Node, part: Part, outcome: Outcome) -> None:
        part.outcome, self.ended_at = outcome, self._clock.now
        self.promises.tell(part.attempt, node.name, outcome)
        self._finish_next(node)

    def _walk(self, part: Part) -> Course:
        members = part.attempt.members
        assert members is not None
        token = lambda: f"{next(self._tokens):08x}"
        return self._course(part.attempt, members, TIMING, lambda: self._clock.now, token)

    # faults

    def _plan_faults(self) -> None:
        for node in self.nodes:
            for _ in range(self._rng.choice([0, 0, 1, 1, 2])):
                at = self._rng.uniform(0, FAULTS_S * 0.5)
                what = self._rng.choice([self._kill, self._kill, self._pause, self._lose])
                self._clock.at(at, lambda n=node, w=what: w(n))

    def _kill(self, node: Node) -> None:
        if node.is_up:
            node.life, node.is_up = node.life + 1, False
            self._clock.at(
                self._clock.now + self._rng.choice([0.1, 5.0, 400.0]), lambda: self._start(node)
            )

    def _pause(self, node: Node) -> None:
        node.paused_until = self._clock.now + self._rng.choice([1.0, 40.0, 400.0])

    def _lose(self, node: Node) -> None:
        """The machine is gone, and its memory; at most one, or nothing could be learned."""
        if node.is_up and not any(each.is_lost for each in self.nodes):
            node.life, node.is_up, node.is_lost = node.life + 1, False, True

    def _start(self, node: Node) -> None:
        """Start-up is recovery: what was sealed is finished, what was not is given up."""
        node.is_up = True
        for part in node.parts:
            if part.outcome is None and not part.is_sealed:
                self._give_up(node, part, errors.Aborted(f"{node.name} was restarted"))
        self._finish_next(node)

    def _runs(self, node: Node) -> bool:
        return node.is_up and node.paused_until <= self._clock.now
