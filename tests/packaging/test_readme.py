"""The first commands of the README are what they are said to be."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from ckptd_proto.exits import EXIT_CODES, INTERRUPTED

ROOT = Path(__file__).parents[2]
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt "


def blocks() -> list[str]:
    return re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def test_the_readme_opens_with_one_command_for_the_demo_and_one_for_the_tests() -> None:
    demo, tests = blocks()[:2]
    assert demo == SET_UP + "'.[demo]' && .venv/bin/ckptd demo\n"
    assert tests == SET_UP + "-e '.[dev]' && .venv/bin/pytest\n"
    first_lines = (ROOT / "README.md").read_text().splitlines()[:22]
    assert [line for line in first_lines if line.startswith("```")] == ["```sh", "```"] * 2


def test_the_readme_says_how_to_have_pytorch_for_the_cpu_before_the_first_command() -> None:
    before = (ROOT / "README.md").read_text().partition("```sh")[0]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in before
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" in before


def test_the_readme_has_every_exit_code() -> None:
    (header,) = re.findall(r"^\| 0 \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [int(code) for code in header.strip("| ").split(" | ")]
    assert shown == sorted({0, INTERRUPTED, *EXIT_CODES.values()})


def test_ci_takes_the_test_command_from_the_readme_instead_of_repeating_it() -> None:
    script = ROOT / ".ci" / "run"
    assert "README.md" in script.read_text()
    assert "pip install" not in script.read_text()
    assert script.stat().st_mode & stat.S_IXUSR
