from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes import ranks
from fakes.daemon import Daemon

PROGRAMS = Path(__file__).parent / "programs"
KINDS = ("data_parallel", "fully_sharded", "hybrid_sharded", "tensor_parallel", "two_dimensional")

pytestmark = pytest.mark.timeout(480)


def test_every_kind_of_sharding_comes_back_bit_equal_in_another_world_size(
    daemon: Daemon, tmp_path: Path
) -> None:
    two, four = (tmp_path / "root" / "e" / name for name in ("two", "four"))
    ranks.torchrun(PROGRAMS / "meshes.py", two, ranks=2, env=daemon.env)
    ranks.torchrun(PROGRAMS / "meshes.py", four, two, ranks=4, env=daemon.env)
    states = [run / f"step-{step}" for run in (two, four) for step in (1, 2, 3)]
    models = [
        run.with_name(f"{run.name}-{kind}") / "step-0" for run in (two, four) for kind in KINDS
    ]
    assert all(model.with_name("whole.pt").exists() for model in models)
    stock = [sys.executable, str(PROGRAMS / "stock.py"), *map(str, states + models)]
    done = subprocess.run(stock, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
