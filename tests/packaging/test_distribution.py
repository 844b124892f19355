"""What is shipped: the wheel, the sdist, and a clean environment that has only the wheel."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"ckptd", "ckptd_daemon", "ckptd_proto"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d"]
    subprocess.run([*build, folder], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_three_packages_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "ckptd_proto/v1/node_pb2_grpc.pyi" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_holds_what_a_wheel_is_built_from_and_no_caches(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "constraints.txt"} <= names
    assert {"Dockerfile", "systemd/ckptd.service", "proto/ckptd_proto/v1/node.proto"} <= names
    left_out = ("__pycache__", "_cache/", ".venv", ".hypothesis")
    assert [name for name in names if any(part in name for part in left_out)] == []


def test_a_clean_environment_with_the_wheel_runs_the_command(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    own = tmp_path / "venv" / "bin" / "python"
    install = [own, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, next(built.glob("*.whl"))], check=True)
    # The dependencies come from our own environment, whose editable ckptd stays out of sight:
    # Python does not follow path files of a directory that a path file names.
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    where = "import ckptd, ckptd_daemon; print(ckptd.__file__); print(ckptd_daemon.__file__)"
    found = subprocess.check_output([own, "-c", where], text=True, cwd=tmp_path).split()
    assert all(Path(path).is_relative_to(site) for path in found)
    shown = subprocess.check_output([own.parent / "ckptd", "--version"], text=True, cwd=tmp_path)
    assert shown == f"ckptd {version('ckptd')}\n"


def test_all_means_every_extra_a_user_may_want() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = sorted(set(extras) - {"all", "dev", "proto"})
    assert extras["all"] == [f"ckptd[{','.join(wanted)}]"]
