from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes import ranks
from fakes.daemon import Daemon

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.timeout(480)


def test_every_kind_of_sharding_comes_back_bit_equal_in_another_world_size(
    daemon: Daemon, tmp_path: Path
) -> None:
    two, four = (tmp_path / "root" / "e" / name for name in ("two", "four"))
    ranks.torchrun(PROGRAMS / "meshes.py", two, ranks=2, env=daemon.env)
    ranks.torchrun(PROGRAMS / "meshes.py", four, two, ranks=4, env=daemon.env)
    paths = [str(run / f"step-{step}") for run in (two, four) for step in (1, 2, 3)]
    stock = [sys.executable, str(PROGRAMS / "stock.py"), *paths]
    done = subprocess.run(stock, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
