"""Random faults, kills, damage and changes at once: nothing wrong is ever handed out.

It runs for `CKPTD_CHAOS_S` seconds with the seed `CKPTD_CHAOS_SEED`, or else a new one. It begins
by saying how to play that again, past pytest's capture: a timeout ends the whole process. What it
finds tells what happened as well.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from chaos.conductor import Conductor
from chaos.disk import Disk, small_disk
from chaos.world import Site, World
from fakes.certificates import Authority
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.tls import TlsFront

DURATION_S = float(os.environ.get("CKPTD_CHAOS_S", "5"))


@pytest.mark.timeout(DURATION_S + 300)
def test_whatever_happens_callers_get_right_bytes_or_typed_errors(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = os.environ.get("CKPTD_CHAOS_SEED") or secrets.token_hex(4)
    again = f"again: CKPTD_CHAOS_SEED={seed} CKPTD_CHAOS_S={DURATION_S:g} pytest tests/chaos"
    say(again, capsys)
    authority = Authority(short_path / "ca")
    daemon = Daemon(short_path / "d")
    with (
        small_disk(daemon.state_dir) as is_small,
        Origin() as one,
        Origin("localhost") as other,
        Origin() as third,
        TlsFront(third, authority) as front,
    ):
        plain = [Site(origin, origin.url("")) for origin in (one, other)]
        world = World(seed, [*plain, Site(third, front.url(""))])
        disk = Disk(daemon.state_dir, is_small=is_small)
        conductor = Conductor(seed, world, daemon, disk, authority.file)
        try:
            conductor.run(DURATION_S)
        except BaseException as error:
            schedule = "\n".join(conductor.schedule)
            raise AssertionError(f"{error}\n\n{schedule}\n\n{again}") from error
    say(f"seed {seed}: {dict(conductor.outcomes)}", capsys)
    assert any(outcome.startswith("right") for outcome in conductor.outcomes)


def say(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")
        sys.stdout.flush()
