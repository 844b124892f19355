"""constraints.txt: one known-good set, the same for everybody."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    requirements = [Requirement(line) for line in lines if not line.startswith("ckptd[")]
    pinned = pins()
    assert [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    ] == []


def test_torch_is_named_exactly_and_pulls_no_cuda() -> None:
    assert pins()["torch"] == "2.13.0"
    assert [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))] == []


def test_what_is_tested_is_the_oldest_protobuf_that_we_support() -> None:
    assert pins()["protobuf"].startswith("5.29.")
    assert pins()["grpcio-tools"] == pins()["grpcio-health-checking"] == "1.71.2"


def test_no_version_or_option_belongs_to_one_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    named = [line for line in lines if not line.startswith("#")]
    assert [line for line in named if "+" in line or "/" in line or line.startswith("-")] == []
