"""Tests that need a real program say so; CKPTD_REQUIRE_REAL=1 makes their skipping a failure.

Registered by `pytest_plugins` of tests/conftest.py. A green run with the variable set means that
everything ran. Tests marked `cuda` stay excused: no machine grows a GPU by installing packages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

import pytest

REQUIRED = os.environ.get("CKPTD_REQUIRE_REAL") == "1"


def need_programs(*names: str) -> None:
    """Skip the test, or the fixture's users, unless all of *names* are in PATH."""
    if missing := [name for name in names if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} in PATH")


def need_root() -> None:
    """Skip the test, or the fixture's users, unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_excused = item.get_closest_marker("cuda") is not None or hasattr(report, "wasxfail")
    if REQUIRED and report.skipped and not is_excused:
        report.outcome = "failed"
        report.longrepr = f"skipped although CKPTD_REQUIRE_REAL=1: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRED and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped although CKPTD_REQUIRE_REAL=1: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
