"""How much of the CPU writing takes from training."""

from __future__ import annotations

import pytest

from ckptd_daemon.save.images.allowance import Allowance, idle_s

CORES = 2
BLOCK_S = 0.002  # of CPU, for each block


class Machine:
    """Two cores, of which training uses some all the time and writing what it is paced to."""

    def __init__(self, training_cores: float) -> None:
        self.now_s = 100.0
        self.idle_s = 50.0
        self.training_cores = training_cores

    def pass_by(self, seconds: float, writing_cores: float) -> None:
        self.now_s += seconds
        self.idle_s += seconds * max(0.0, CORES - self.training_cores - writing_cores)


def written(machine: Machine, share: float, lasting_s: float) -> float:
    """Return how many cores writing took on average when it had more to do all the time."""
    allowance = Allowance(share, CORES, idle_s=lambda: machine.idle_s, now_s=lambda: machine.now_s)
    began_s, used_s = machine.now_s, 0.0
    while machine.now_s < began_s + lasting_s:
        machine.pass_by(BLOCK_S, writing_cores=1)
        used_s += BLOCK_S
        machine.pass_by(allowance.pause_s(BLOCK_S), writing_cores=0)
    return used_s / lasting_s


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_beside_training_that_wants_all_cores_writing_takes_its_share_and_no_more(
    share: float,
) -> None:
    cores = written(Machine(training_cores=2), share, lasting_s=10)
    assert cores == pytest.approx(share * CORES, rel=0.1)


def test_what_training_leaves_idle_is_there_for_writing() -> None:
    assert written(Machine(training_cores=0), 0.1, lasting_s=10) > 0.9  # one writer: one core
    assert 0.3 < written(Machine(training_cores=1.5), 0.1, lasting_s=10) < 0.7


def test_when_training_begins_writing_gives_way_at_once() -> None:
    machine = Machine(training_cores=0)
    allowance = Allowance(0.1, CORES, idle_s=lambda: machine.idle_s, now_s=lambda: machine.now_s)
    for _ in range(1000):
        machine.pass_by(BLOCK_S, writing_cores=1)
        machine.pass_by(allowance.pause_s(BLOCK_S), writing_cores=0)
    machine.training_cores, until_s, used_s = 2, machine.now_s + 1, 0.0
    while machine.now_s < until_s:
        machine.pass_by(BLOCK_S, writing_cores=1)
        used_s += BLOCK_S
        machine.pass_by(allowance.pause_s(BLOCK_S), writing_cores=0)
    assert used_s < 0.1 * CORES * 1.0 + 0.4  # what was saved up, and a window until it is seen


def test_a_pause_is_short_enough_to_notice_that_training_has_ended() -> None:
    machine = Machine(training_cores=2)
    allowance = Allowance(0.01, CORES, idle_s=lambda: machine.idle_s, now_s=lambda: machine.now_s)
    assert allowance.pause_s(60.0) <= 0.25


def test_the_kernel_tells_how_long_the_cores_were_idle() -> None:
    assert 0 < idle_s() <= idle_s()
