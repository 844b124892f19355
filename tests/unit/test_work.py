"""What a connection is to bring next, from what was learned of the way."""

from __future__ import annotations

import mmap
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.sources.source import Endpoint, Object, Validator
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.pace import Flow, Limits, Pacer
from ckptd_daemon.transfer.plan import Plan
from ckptd_daemon.transfer.stream import Stream
from ckptd_daemon.transfer.work import Work

MIB = 1 << 20
FAST = 50e6  # bytes per second


@pytest.mark.parametrize(
    ("late_s", "mib"),
    [
        ([0.001], 4),
        ([0.2], 16),
        ([0.2, 0.2, 0.2], 16),
        ([0.001, 0.2], 4),  # a busy machine, not a long way
        ([0.2, 0.001], 4),
    ],
)
def test_a_request_is_for_what_the_way_is_worth_at_its_best(late_s: list[float], mib: int) -> None:
    header = Header("o", "t", "v", "n", 64 * MIB, 16 * MIB, is_resumable=True)
    partial = cast(Partial, SimpleNamespace(header=header, missing=lambda: range(4)))
    demand = Demand()
    with demand.whole():
        work = Work(partial, demand)
        for found_s in late_s:
            work.learn(found_s, FAST)
        claim = work.next(streams=64)
    assert claim is not None
    assert claim.end == mib * MIB


def test_a_claim_that_needs_no_request_teaches_nothing_of_the_way(tmp_path: Path) -> None:
    endpoint = Endpoint("http://origin.example/model", {}, ssl.create_default_context())
    obj = Object("o", "t", "v", "n", 1, True, Validator('"v"', None, True), endpoint.url, False)
    header = Header("o", "t", "v", "n", 1, MIB, is_resumable=True)
    claim = Plan(header, [0]).claim(0, 1)
    claim.at = claim.end  # another connection has brought it
    stream = Stream(obj, endpoint, Pacer(Limits()).pace([], print, Flow()), Config())
    stream.fetch(claim, Partial(tmp_path, header), memoryview(mmap.mmap(-1, MIB)), print)
    assert stream.late_s is None
