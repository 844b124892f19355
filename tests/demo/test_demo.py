"""`ckptd demo`, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "ckptd.cli", "demo"]


@pytest.fixture
def environment(short_path: Path) -> dict[str, str]:
    """Temporary files go where the test can look afterwards."""
    return os.environ | {"TMPDIR": str(short_path)}


@pytest.mark.timeout(300)
def test_the_demo_fetches_once_survives_the_kill_and_leaves_nothing(
    environment: dict[str, str], short_path: Path
) -> None:
    arenas = set(Path("/dev/shm").iterdir())
    run = subprocess.run(
        [*COMMAND, "--json", "--seed", "20"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)

    assert told["bit_identical"] is True
    assert told["sha256"] == told["sha256_uninterrupted"]
    # Once for three launches; the byte more per launch asks whether it is still the same object.
    assert 0 <= told["origin_sent_bytes"] - told["model_bytes"] <= 12
    assert told["asked_bytes"] == 12 * told["model_bytes"]
    assert 0 < told["resumed_from_step"] <= told["killed_at_step"] < told["steps"]
    # A guess would be right one time in ten.
    assert told["accuracy"] > 0.5
    assert list(short_path.iterdir()) == []
    assert [path for path in set(Path("/dev/shm").iterdir()) - arenas if "demo" in path.name] == []


def test_the_demo_says_what_to_install_when_its_packages_are_missing(
    environment: dict[str, str],
) -> None:
    # Without site-packages' `sklearn`: as in an environment that has ckptd alone.
    hidden = "import sys; sys.modules['sklearn'] = None; from ckptd.cli import main; main(['demo'])"
    run = subprocess.run(
        [sys.executable, "-c", hidden], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 4
    assert run.stderr.count("\n") == 1
    assert "sklearn" in run.stderr
    assert "pip install 'ckptd[demo]'" in run.stderr
