"""Skipping for want of a program: fine on a laptop, a failure in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest
from fakes.require_real import need_programs

def test_needs_something():
    need_programs("no-such-program")

@pytest.mark.cuda
def test_needs_a_gpu():
    pytest.skip("no GPU")

@pytest.mark.xfail(strict=True)
def test_is_known_to_fail():
    assert False
"""
MODULE = 'import pytest\npytest.skip("no such thing", allow_module_level=True)\n'


@pytest.mark.parametrize(
    ("required", "summary"), [("", "2 skipped, 1 xfailed"), ("1", "1 failed, 1 skipped, 1 xfailed")]
)
def test_a_skipped_test_fails_where_the_real_thing_is_required(
    tmp_path: Path, required: str, summary: str
) -> None:
    assert summary in _run(tmp_path, SUITE, required)


@pytest.mark.parametrize(("required", "summary"), [("", "1 skipped"), ("1", "1 error")])
def test_a_skipped_module_fails_where_the_real_thing_is_required(
    tmp_path: Path, required: str, summary: str
) -> None:
    assert summary in _run(tmp_path, MODULE, required)


def _run(folder: Path, suite: str, required: str) -> str:
    (folder / "test_suite.py").write_text(suite)
    variables = {"CKPTD_REQUIRE_REAL": required, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = [sys.executable, "-m", "pytest", "-p", "fakes.require_real", "-q"]
    return subprocess.run(
        run, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    ).stdout
