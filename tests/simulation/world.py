"""Nodes, their daemons and one shared directory, in virtual time: the protocol is the real one.

Everything follows from the seed: how long each call takes, which fails before or after it was
done, comes twice, or overtakes another; how long a node believes what it has seen; who is killed,
paused, lost or restarted, and when.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, JobKey, taken
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.members import Members, is_attempt_of_any
from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.protocol import REPLACED, Course, Outcome, Timing
from ckptd_daemon.save.nodes.receipts import encode_note
from ckptd_daemon.save.places import Place
from ckptd_proto import errors
from simulation.directory import Dir, Directory, View

PLACE = Place(Path("/root"), "e", "r")
TIMING = Timing(poll_s=0.5, poll_max_s=15.0, takeover_s=30.0, appear_s=60.0, patience_s=300.0)
LAGS_S = (0.0, 5.0, 60.0)  # how long a node believes a name; NFS, left alone, a minute
FAULTS_S = 900.0
QUIET_S = 20_000.0  # after the last fault every attempt has ended


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass(eq=False)
class Part:
    """What one daemon has of an attempt; as its arena has it, so it survives the daemon."""

    attempt: Attempt
    is_sealed: bool = False
    is_doomed: bool = False
    outcome: Outcome | None = None
    begun_in: int = -1
    """The life of its daemon that finishes it."""

    @property
    def is_staging(self) -> bool:
        return not self.is_sealed and not self.is_doomed and self.outcome is None


@dataclass(eq=False)
class Node:
    name: str
    view: View
    parts: list[Part] = field(default_factory=list)
    life: int = 0
    is_up: bool = True
    is_lost: bool = False
    paused_until: float = 0.0
    delivers_in: int = -1
    """The life in which it is writing images, one attempt's at a time."""
    newest_first: bool = False
    """It has been told that it is about to go away."""
    calls: int = 0


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
        self.rng = Random(seed)
        self.now = 0.0
        self._course = course
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._tokens = count()
        self.has_faults = has_faults
        self.errors_rate = self.rng.choice([0.0, 0.02, 0.1]) if has_faults else 0.0
        self.twice_rate = self.rng.choice([0.0, 0.05]) if has_faults else 0.0
        self.has_exchange = self.rng.random() < 0.5
        size = nodes or self.rng.choice([2, 2, 2, 3, 3, 4, 4, 5, 6, 8, 16])
        self.directory = Directory(self._named)
        self.directory.perform(ops.Make(PLACE.attempts))
        lag_of_seed_s = self.rng.choice(LAGS_S)
        self.lag_s = lag_of_seed_s if lag_s is None else lag_s
        self.nodes = [
            Node(f"{number:012x}", self._view(), newest_first=self.rng.random() < 0.2)
            for number in range(size)
        ]
        self.attempts: dict[str, Attempt] = {}
        self.told: dict[str, list[tuple[str, Outcome]]] = {}
        self.committed: dict[int, list[str]] = {}
        self.present = 0
        self.ended_at = 0.0

    def _view(self) -> View:
        return View(self.directory, lambda: self.now, self.lag_s)

    def run(self, attempts: int = 4) -> None:
        """Let some saves happen, with faults; raises `Broken`."""
        self._plan_saves(attempts)
        if self.has_faults:
            self._plan_faults()
        while self._events and self.now < FAULTS_S + QUIET_S:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self._check_end()

    # saves

    def _plan_saves(self, attempts: int) -> None:
        begin, life, sequence, members = 0.0, 0, 0, self._members()
        for number in range(attempts):
            begin += self.rng.uniform(1, 60)
            if number and self.rng.random() < 0.25:
                life, sequence, members = life + 1, 0, self._members()
            step = self.rng.choice([7, 7, 8])
            replaces = self.rng.random() < 0.4
            self._at(begin, lambda a=(life, sequence, step, replaces, members): self._save(*a))
            sequence += 1

    def _members(self) -> tuple[str, ...]:
        size = self.rng.randint(2, len(self.nodes)) if self.has_faults else len(self.nodes)
        return tuple(node.name for node in self.rng.sample(self.nodes, size))

    def _save(
        self, life: int, sequence: int, step: int, replaces: bool, names: tuple[str, ...]
    ) -> None:
        self.present = life
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
            self.attempts[attempt_id] = attempt
            node = next(node for node in self.nodes if node.name == name)
            part = Part(attempt)
            soon = self.now + self.rng.uniform(0.001, 0.9)
            begin = self._claim if sequence == 0 and life else self._open
            self._at(soon, lambda n=node, p=part, b=begin: b(n, p))

    def _claim(self, node: Node, part: Part) -> None:
        """End what earlier lives have left, as `commit.repair` and `elsewhere` do; then open."""
        if self._runs(node):
            self._drive(node, part, self._repair(node, part), lambda *_: self._open(node, part))

    def _repair(self, node: Node, part: Part) -> ops.Steps[None]:
        in_hand = {each.attempt.id for each in node.parts if each.outcome is None}
        earlier = [f"life {life}" for life in range(_life(part.attempt))]
        for path in self._left():
            if path.name not in in_hand:
                yield from self._put_back(path / REPLACED)
        for path in self._left():
            attempt_id, _, kind = path.name.partition(".")
            if kind.endswith("gone"):
                yield from self._delete(path)
            elif attempt_id in in_hand:
                continue
            elif kind == "abort":
                if is_attempt_of_any(earlier[:-1], attempt_id):
                    yield ops.Sweep(path)
            elif is_attempt_of_any(earlier, attempt_id):
                if not kind:
                    note = encode_note(attempt_id, "", errors.FailedPrecondition("a newer life"))
                    yield ops.Note(path.with_name(f"{attempt_id}.abort"), note)
                gone = path.with_name(f"{path.name}.{next(self._tokens)}.gone")
                if (yield ops.Rename(path, gone)) is ops.Renamed.DONE:
                    yield from self._delete(gone)

    def _left(self) -> list[Path]:
        attempts = self.directory.find(PLACE.attempts)
        assert isinstance(attempts, Dir)
        return [PLACE.attempts / name for name in attempts.entries]

    def _put_back(self, replaced: Path) -> ops.Steps[None]:
        data: bytes | None = yield ops.Read(replaced / "manifest.json")
        if data is None:
            return
        step = PLACE.step(manifests.decode(data, PLACE).step)
        if not (yield ops.Exists(step)):
            yield ops.Rename(replaced, step)

    def _delete(self, gone: Path) -> ops.Steps[None]:
        yield from self._put_back(gone / REPLACED)
        yield ops.Sweep(gone)

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

            self._drive(node, part, course.create(), created)
        else:
            seal()

    def _sealing(self, node: Node, part: Part) -> Callable[[], None]:
        life = node.life
        dies = self.has_faults and self.rng.random() < 0.08

        def seal() -> None:
            if node.life != life or part.outcome is not None:
                return
            earlier = node.parts[: node.parts.index(part)]
            if node.paused_until > self.now:
                self._at(node.paused_until, seal)
            elif any(each.is_staging for each in earlier):
                self._at(self.now + 1, seal)  # a rank seals its saves in order
            elif dies:
                reason = f"rank of {node.name} died before it had staged"
                self._give_up(node, part, errors.Aborted(reason))
            else:
                part.is_sealed = True
                self._finish_next(node)

        return lambda: self._at(self.now + self.rng.uniform(0.1, 20), seal)

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
                self._drive(node, part, course.conclude(), concluded)
                self._finish_next(node)
            else:
                self._end(node, part, outcome)

        def concluded(outcome: Outcome | None, failed: ops.Failed | None) -> None:
            if failed is not None or outcome is None:
                raise Broken(f"{node.name} led nowhere with {part.attempt.id}: {failed}")
            self._end(node, part, outcome)

        self._drive(node, part, course.deliver(), delivered)

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

        self._drive(node, part, self._walk(part).give_up(why), given_up)

    def _end(self, node: Node, part: Part, outcome: Outcome) -> None:
        part.outcome, self.ended_at = outcome, self.now
        self.told.setdefault(part.attempt.id, []).append((node.name, outcome))
        self._check_told(part.attempt)
        self._finish_next(node)

    def _walk(self, part: Part) -> Course:
        members = part.attempt.members
        assert members is not None
        token = lambda: f"{next(self._tokens):08x}"
        return self._course(part.attempt, members, TIMING, lambda: self.now, token)

    # one daemon and the directory

    def _drive(
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
            if node.paused_until > self.now:
                self._at(node.paused_until, lambda: proceed(answer, failed))
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
                self._at(self.now + op.seconds, lambda: proceed(None, None))
            elif isinstance(op, ops.Persist):
                self._persist(node, life, part, op.path, proceed)
            else:
                self._call(node, life, op, proceed)

        proceed(None, None)

    def _call(
        self, node: Node, life: int, op: ops.Op, then: Callable[[Any, ops.Failed | None], None]
    ) -> None:
        fails = self.now < FAULTS_S and self.rng.random() < self.errors_rate
        is_done = not fails or self.rng.random() < 0.5

        def act() -> None:
            if not is_done or (node.life != life and self.rng.random() < 0.5):
                answer = None  # it was killed before the call got out, or that failed
            elif isinstance(op, ops.Exchange) and not self.has_exchange:
                answer = ops.Renamed.UNSUPPORTED
            else:
                answer = node.view.perform(op)
            failed = ops.Failed(errors.Unavailable("EIO")) if fails else None
            self._at(self.now + self._delay(), lambda: then(answer, failed))

        self._at(self.now + self._delay(), act)
        if self.rng.random() < self.twice_rate and not isinstance(op, ops.Exchange):
            self._at(self.now + self._delay() + self.rng.uniform(0, 90), act_again(self, op))

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
                self._at(self.now + self.rng.uniform(0.1, 30), end)
            else:
                then(None, None)

        def end() -> None:
            if node.life != life and self.rng.random() < 0.7:
                return
            if self.now < FAULTS_S and self.rng.random() < self.errors_rate:
                then(None, ops.Failed(errors.Unavailable("EIO while persisting")))
            elif node.view.find(aside) is None:
                then(None, None)
            else:
                node.view.perform(ops.Sweep(aside))
                node.view.put(path / image.name, content)
                then((Receipt(image, "p", "sums", 1),), None)

        self._at(self.now + self._delay(), begin)

    # faults

    def _plan_faults(self) -> None:
        for node in self.nodes:
            for _ in range(self.rng.choice([0, 0, 1, 1, 2])):
                at = self.rng.uniform(0, FAULTS_S * 0.5)
                what = self.rng.choice([self._kill, self._kill, self._pause, self._lose])
                self._at(at, lambda n=node, w=what: w(n))

    def _kill(self, node: Node) -> None:
        if node.is_up:
            node.life, node.is_up = node.life + 1, False
            self._at(self.now + self.rng.choice([0.1, 5.0, 400.0]), lambda: self._start(node))

    def _pause(self, node: Node) -> None:
        node.paused_until = self.now + self.rng.choice([1.0, 40.0, 400.0])

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
        return node.is_up and node.paused_until <= self.now

    def _delay(self) -> float:
        if self.has_faults and self.now < FAULTS_S and self.rng.random() < 0.04:
            return self.rng.uniform(1, 120)
        return self.rng.uniform(0.001, 0.05)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    # promises

    def _named(self, path: Path, what: Dir) -> None:
        if path.parent != PLACE.directory:
            return
        step = int(path.name.removeprefix("step-"))
        manifest = what.entries.get("manifest.json")
        if not isinstance(manifest, bytes):
            raise Broken(f"{path.name} appeared without a manifest")
        attempt = self.attempts[json.loads(manifest)["attempt"]]
        for rank in range(attempt.job.world_size):
            if what.entries.get(f"__{rank}_0.distcp") != f"{attempt.id} {rank}".encode():
                raise Broken(f"{attempt.id} was committed without the image of rank {rank}")
        history = self.committed.setdefault(step, [])
        if attempt.id not in history:
            if history and not attempt.replaces:
                raise Broken(f"step {step} is {attempt.id} after it was {history[-1]}")
            history.append(attempt.id)
        elif history[-1] != attempt.id and self._was_told(history[-1]):
            raise Broken(f"{attempt.id} came back as step {step} after {history[-1]}")
        if any(isinstance(outcome, errors.CkptdError) for _, outcome in self._outcomes(attempt)):
            raise Broken(f"{attempt.id} was committed after somebody had heard it was aborted")

    def _outcomes(self, attempt: Attempt) -> list[tuple[str, Outcome]]:
        return self.told.get(attempt.id, [])

    def _is_past(self, attempt: Attempt) -> bool:
        history = self.committed.get(attempt.step, [])
        after = history[history.index(attempt.id) :] if attempt.id in history else []
        return any(self.attempts[one].job.incarnation != attempt.job.incarnation for one in after)

    def _is_long_past(self, attempt: Attempt) -> bool:
        """A life after the next has begun, and taken away the note that said why."""
        return _life(attempt) < self.present - 1

    def _was_told(self, attempt_id: str) -> bool:
        return any(isinstance(told, Checkpoint) for _, told in self.told.get(attempt_id, []))

    def _check_told(self, attempt: Attempt) -> None:
        if self._is_past(attempt) or self._is_long_past(attempt):
            return  # who slept until a later life had replaced it cannot know any more
        name, outcome = self._outcomes(attempt)[-1]
        for other, before in self._outcomes(attempt):
            if isinstance(outcome, Checkpoint) != isinstance(before, Checkpoint):
                raise Broken(f"{attempt.id}: {other} heard {before!r} and {name} {outcome!r}")
        if isinstance(outcome, Checkpoint):
            history = self.committed.get(attempt.step, [])
            if outcome.attempt not in history:
                raise Broken(f"{name} was told of {outcome.attempt}, which is nowhere")
        elif attempt.id in self.committed.get(attempt.step, []):
            raise Broken(f"{name} was told that {attempt.id} is aborted, and it is committed")

    def _check_end(self) -> None:
        for node in self.nodes:
            for part in node.parts:
                if part.outcome is None and not node.is_lost:
                    raise Broken(f"{node.name} never learned what became of {part.attempt.id}")
        for step, history in self.committed.items():
            there = self.directory.find(PLACE.step(step) / "manifest.json")
            told = [attempt for attempt in history if self._was_told(attempt)]
            if told and not isinstance(there, bytes):
                raise Broken(f"step {step} is gone, and somebody was told of it")
            if told and json.loads(there)["attempt"] not in history[history.index(told[-1]) :]:
                raise Broken(f"step {step} is an older one than {told[-1]}, which was told of")
        if self.errors_rate == 0:
            for attempt_id, told in self.told.items():
                if self._is_long_past(self.attempts[attempt_id]):
                    continue
                said = {str(one) for _, one in told if isinstance(one, errors.CkptdError)}
                if len(said) > 1:
                    raise Broken(f"{attempt_id} ended with {len(said)} different sentences: {said}")


def _life(attempt: Attempt) -> int:
    return int(attempt.job.incarnation.removeprefix("life "))


def act_again(world: World, op: ops.Op) -> Callable[[], None]:
    """The same call once more, as a network that lost the answer makes it."""
    return lambda: world.directory.perform(op)
