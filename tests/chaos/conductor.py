"""Runs callers against a daemon while it kills, damages and changes what they depend on."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.callers import CALL_MAX_S, Caller
from chaos.disk import Disk, flip
from chaos.world import Thing, Tree, World
from ckptd import errors
from fakes.daemon import Daemon

CALLERS = 4
END_S = 60.0
SETTINGS = {
    "stall_s": 0.7,
    "connect_s": 2,
    "retries": 3,
    "linger_s": 0.3,
    "revalidate_s": 0.2,
    "failure_s": 0.2,
    "drain_s": 1,
    "wait_for_room_s": 5,
    "max_bytes_per_s": 300_000_000,  # so that things happen in the middle of transfers
}
QUOTAS_BYTES = (160 << 20, 260 << 20)
FREE_FLOOR_BYTES = 64 << 20
NEVER = {"Internal", "Unimplemented", "InvalidArgument", "AlreadyExists"}
MAY_FAIL = (errors.Unavailable, errors.ResourceExhausted, errors.Aborted)
"""What the conductor's own calls may end with while the disk is small."""


class BrokenError(AssertionError):
    """The mix found something."""


class Conductor:
    """Does what the seed says, one event after the other; what each draws is its own."""

    def __init__(
        self, seed: str, world: World, daemon: Daemon, disk: Disk, certificates: Path
    ) -> None:
        self._seed = seed
        self._world = world
        self._daemon = daemon
        self._disk = disk
        self._settings = SETTINGS | {
            "ca_file": certificates,
            "free_floor_bytes": 1 if disk.is_small else FREE_FLOOR_BYTES,
        }
        self._targets = daemon.directory / "targets.json"
        self._callers: list[Caller] = []
        self._born = 0
        self._judged: Counter[str] = Counter()
        self._began = time.monotonic()
        self.schedule: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def run(self, duration_s: float) -> None:
        """Play for so long, then see whether everything is well again."""
        things = [_of_thing(thing) for thing in self._world.things]
        trees = [_of_tree(tree) for tree in self._world.trees]
        self._targets.write_text(json.dumps(things + trees * 2))
        for thing in self._world.things:
            self._world.sow(thing, 0.2)
        try:
            self._start_daemon(self._drawn("first"))
            count = 0
            while self._goes_on(duration_s):
                while len(self._callers) < CALLERS:
                    self._start_caller()
                count += 1
                self._happen(self._drawn(str(count)))
                self._judge()
            self._end()
        finally:
            for caller in self._callers:
                caller.kill()
            if self._daemon.process is not None:
                self._daemon.kill()

    def _goes_on(self, duration_s: float) -> bool:
        """Whether it is not over: callers take time to start, and one shall get something."""
        lasted_s = time.monotonic() - self._began
        is_of_use = any(outcome.startswith("right") for outcome in self.outcomes)
        return lasted_s < duration_s + (0 if is_of_use else END_S)

    def _drawn(self, event: str) -> random.Random:
        """What one event is drawn from: whatever came of those before it."""
        return random.Random(f"{self._seed}/event/{event}")

    def _happen(self, drawn: random.Random) -> None:
        events: dict[Callable[[random.Random], None], int] = {
            self._change: 16,
            self._sow: 10,
            self._kill_daemon: 4,
            self._restart_daemon: 1,
            self._kill_caller: 3,
            self._refuse: 2,
            self._clear: 2,
            self._verify: 1,
            self._spoil_keepsake: 1,
            self._fill_disk: 2,
        }
        time.sleep(drawn.uniform(0.0, 0.4))
        drawn.choices([*events], [*events.values()])[0](drawn)

    def _note(self, text: str) -> None:
        self.schedule.append(f"{time.monotonic() - self._began:7.2f} {text}")

    def _start_caller(self) -> None:
        self._born += 1
        self._note(f"caller {self._born} comes")
        self._callers.append(Caller(self._daemon, f"{self._seed}/{self._born}", self._targets))

    def _kill_caller(self, drawn: random.Random) -> None:
        caller = drawn.choice(self._callers)
        self._note(f"caller {caller.seed} is killed")
        caller.kill()
        self._judge()
        self._callers.remove(caller)

    def _change(self, drawn: random.Random) -> None:
        thing = drawn.choice([one for one in self._world.things if not one.is_stated])
        if self._world.change(thing):
            self._note(f"{thing.name} is to have version {len(thing.versions) - 1}")

    def _sow(self, drawn: random.Random) -> None:
        evil = drawn.choice([0.0, 0.2, 0.4, 0.8])
        what = drawn.choice([*self._world.things, *self._world.trees])
        if isinstance(what, Tree):
            self._world.sow_listing(what, evil, drawn)
        else:
            self._world.sow(what, evil)
        self._note(f"{what.name} is {evil:.0%} evil")

    def _refuse(self, drawn: random.Random) -> None:
        origin = drawn.choice(self._world.sites).origin
        self._note(f"origin {origin.port} refuses connections")
        origin.refuse()
        time.sleep(drawn.uniform(0.0, 0.5))
        origin.accept()

    def _clear(self, drawn: random.Random) -> None:
        """Drop some blob that nobody holds."""
        try:
            if blobs := self._daemon.client().blobs():
                self._daemon.client().remove_blob(drawn.choice(blobs).key)
        except (errors.FailedPrecondition, errors.NotFound) as error:
            self._note(f"not cleared: {error}")

    def _verify(self, drawn: random.Random) -> None:
        """Have the whole cache read back, in which nothing is damaged."""
        self._note("the cache is verified")
        for verdict in self._daemon.client().verify_blobs():
            if verdict.damaged_chunks:
                raise BrokenError(f"a sound blob is called damaged: {verdict}")

    def _spoil_keepsake(self, drawn: random.Random) -> None:
        """Damage a blob that nobody holds: it is found, set aside, and fetched again."""
        where, dies, is_cut = drawn.random(), drawn.random() < 0.5, drawn.random() < 0.3
        thing, client = self._world.keepsake, self._daemon.client()
        try:
            with client.open(thing.url, timeout=CALL_MAX_S) as path:
                self._require_right(thing, path)
            key = path.parent.name
            if dies:
                self._daemon.kill()
            flip(path, int(where * thing.size_bytes))
            if is_cut:
                path.write_bytes(path.read_bytes()[: int(where * thing.size_bytes)])
            self._note(f"the copy of {thing.name} is {'cut' if is_cut else 'damaged'} at {where}")
            if dies:
                self._start_daemon(drawn)
            if not is_cut:  # a cut is noticed by itself
                for verdict in client.verify_blobs([key]):  # none if it was evicted
                    if not verdict.damaged_chunks:
                        raise BrokenError(f"the damage of {path} is not found: {verdict}")
            with client.open(thing.url, timeout=CALL_MAX_S) as path:
                self._require_right(thing, path)
        except FileNotFoundError as error:
            self._note(f"the copy of {thing.name} was evicted before it was damaged: {error}")
            if self._daemon.process is None:
                self._start_daemon(drawn)
        except (errors.NotFound, *MAY_FAIL) as error:
            self._note(f"{thing.name} could not be spoilt: {error}")

    def _require_right(self, thing: Thing, path: Path) -> None:
        if path.read_bytes() != thing.file.data:
            raise BrokenError(f"WRONG BYTES of {thing.name} at {path}")

    def _fill_disk(self, drawn: random.Random) -> None:
        left_bytes, dies = drawn.choice([0, 1 << 20, 20 << 20]), drawn.random() < 0.3
        lasts_s = drawn.uniform(0.1, 1.5)
        if not self._disk.is_small:
            return
        self._note(f"the disk has {left_bytes} bytes left")
        with self._disk.filled(left_bytes):
            time.sleep(lasts_s)
            if dies:
                self._kill_daemon(drawn)
        self._note("the disk has room again")

    def _start_daemon(self, drawn: random.Random) -> None:
        quota = drawn.choice(QUOTAS_BYTES)
        settings = self._settings | {"cache_bytes": quota, "streams": drawn.choice([1, 8])}
        self._daemon.settings = {f"CKPTD_{key.upper()}": str(v) for key, v in settings.items()}
        self._daemon.start()

    def _kill_daemon(self, drawn: random.Random) -> None:
        self._note("the daemon is killed")
        self._daemon.kill()
        for _ in range(drawn.choice([0, 0, 1, 3])):
            self._note(self._disk.spoil(drawn))
        self._start_daemon(drawn)
        self._note("the daemon is back")

    def _restart_daemon(self, drawn: random.Random) -> None:
        self._note("the daemon is stopped")
        if (code := self._daemon.stop()) != 0:
            raise BrokenError(f"the daemon stopped with {code}")
        self._start_daemon(drawn)

    def _judge(self) -> None:
        """Look at everything that callers have said since."""
        for caller in self._callers:
            for report in caller.reports[self._judged[caller.seed] :]:
                self._judged[caller.seed] += 1
                self._judge_report(caller, report)
            if complaint := caller.complaint():
                raise BrokenError(complaint)

    def _judge_report(self, caller: Caller, report: dict[str, Any]) -> None:
        got = report.get("got")
        self.outcomes[report.get("error") or (f"right {report['way']}" if got else "left")] += 1
        if report["ended"] - report["began"] > CALL_MAX_S:
            raise BrokenError(f"caller {caller.seed} waited too long: {report}")
        if error := report.get("error"):
            self._note(f"caller {caller.seed}: {report}")
            if error in NEVER or (error == "DataLoss" and not self._may_be_damaged(report)):
                raise BrokenError(f"caller {caller.seed} got {report}")
            return
        began = float("-inf") if report["way"] == "offline" else report["began"]
        for name, parts in (got or {}).items():
            thing = self._world[name]
            if not thing.had(parts, began, report["ended"]):
                raise BrokenError(f"WRONG BYTES: {thing} as caller {caller.seed} got it: {report}")

    def _may_be_damaged(self, report: dict[str, Any]) -> bool:
        """Whether some bytes that the call was for may be damaged on their way: those stated."""
        trees = {tree.name: tree.members for tree in self._world.trees}
        name = report["name"]
        things = trees[name] if name in trees else (self._world[name],)
        return report["way"] == "many" or any(thing.is_stated for thing in things)

    def _end(self) -> None:
        """Now that all is well again, everything can be had."""
        self._note("the end")
        self._world.heal()
        for caller in self._callers:
            caller.stop()
        self._judge()
        self._callers.clear()
        client = self._daemon.client()
        for thing in (*self._world.things, self._world.keepsake):
            with client.open(thing.url, timeout=END_S) as path:
                self._require_right(thing, path)
        for tree in self._world.trees:
            with client.open(tree.url, timeout=END_S) as path:
                for thing in tree.members:
                    self._require_right(thing, path / thing.name.removeprefix(tree.name))
        if (code := self._daemon.stop()) != 0:  # it has also looked for tracebacks in the log
            raise BrokenError(f"the daemon stopped with {code}")


def _of_thing(thing: Thing) -> dict[str, Any]:
    """What callers are told of *thing*."""
    return {
        "name": thing.name,
        "url": thing.url,
        "sha256": thing.versions[0].sha256 if thing.is_stated else None,
        "tensors": [*thing.versions[0].tensors],
        "members": {},
    }


def _of_tree(tree: Tree) -> dict[str, Any]:
    members = {thing.name.removeprefix(tree.name): thing.name for thing in tree.members}
    return {
        "name": tree.name,
        "url": tree.url,
        "sha256": None,
        "tensors": [],
        "members": members,
    }
