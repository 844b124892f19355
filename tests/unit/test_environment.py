"""Every `CKPTD_…` variable that something reads is known, and no other passes unnoticed."""

from __future__ import annotations

import re
from pathlib import Path

from ckptd_daemon import environment

ROOT = Path(__file__).parents[2]
MADE_UP = {"CKPTD_NEVER_SET", "CKPTD_STREEMS", "CKPTD_KUBERNETES_PORT"}


def written() -> set[str]:
    """All names of variables in what is ours."""
    files = [
        path
        for folder in ("benchmarks", "client", "daemon", "proto", "systemd", "tests", "docs", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".service", ""} and path.is_file()
    ]
    files += [ROOT / "README.md", ROOT / "Dockerfile"]
    return {
        name
        for path in files
        for name in re.findall(r"\bCKPTD_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(errors="replace"))
    }


def test_every_variable_that_is_written_anywhere_is_known() -> None:
    assert written() - environment.KNOWN == MADE_UP


def test_every_variable_that_is_no_setting_is_written_somewhere() -> None:
    assert environment.OTHERS - written() == set()


def test_an_unknown_variable_is_told_with_the_nearest_known_one() -> None:
    (said,) = environment.warnings(["CKPTD_STREEMS", "CKPTD_STREAMS", "ckptd_idle_s", "PATH"])
    assert said == (
        "the environment has CKPTD_STREEMS, which nothing reads; did you mean CKPTD_STREAMS?"
    )


def test_one_that_is_like_none_is_told_all_the_same() -> None:
    (said,) = environment.warnings(["CKPTD_KUBERNETES_PORT"])
    assert said.endswith(
        "CKPTD_KUBERNETES_PORT, which nothing reads; docs/CONFIGURATION.md has those there are"
    )
