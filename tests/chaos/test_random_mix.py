"""Random faults, kills, damage and changes at once: nothing wrong is ever handed out.

It runs for `CKPTD_CHAOS_S` seconds with the seed `CKPTD_CHAOS_SEED`, or else a new one. What it
finds names the seed and tells what happened, so that it can be tried again.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from chaos.conductor import Conductor
from fakes.origin import Origin

DURATION_S = float(os.environ.get("CKPTD_CHAOS_S", "5"))


@pytest.mark.timeout(DURATION_S + 240)
def test_whatever_happens_callers_get_right_bytes_or_typed_errors(short_path: Path) -> None:
    seed = os.environ.get("CKPTD_CHAOS_SEED") or secrets.token_hex(4)
    with Origin() as one, Origin("localhost") as other:
        conductor = Conductor(seed, short_path, [one, other])
        try:
            conductor.run(DURATION_S)
        except BaseException as error:
            schedule = "\n".join(conductor.schedule)
            replay = f"CKPTD_CHAOS_SEED={seed} CKPTD_CHAOS_S={DURATION_S:g}"
            text = f"{error}\n\n{schedule}\n\nagain: {replay} pytest tests/chaos"
            raise AssertionError(text) from error
    sys.stdout.write(f"seed {seed}: {dict(conductor.outcomes)}\n")
    assert conductor.outcomes["right"]
