"""The checked-in modules of the wire contract are what its .proto files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "proto" / "generate.py"


def test_regenerating_the_wire_contract_changes_nothing() -> None:
    check = [sys.executable, GENERATE, "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
