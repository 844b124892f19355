from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ckptd
from ckptd import aio
from ckptd.client import Client
from fakes.running import python

ROOT = Path(ckptd.__file__).parents[2]


def test_import_directions_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("statement", ["import ckptd", "import ckptd.cli", "import ckptd.cli.node"])
def test_importing_costs_neither_torch_nor_grpc(statement: str) -> None:
    code = f"import sys; {statement}; print({{'torch', 'grpc', 'rich'}} & set(sys.modules))"
    assert python(code, env={}) == "set()\n"


def test_every_public_name_can_be_loaded() -> None:
    pytest.importorskip("torch")
    assert not {"import_module", "annotations", "_WHERE"} & set(dir(ckptd))
    for name in dir(ckptd):
        assert getattr(ckptd, name) is not None


def public_methods(kind: type) -> dict[str, object]:
    """Names and parameters; what a context manager returns differs, as it must."""
    return {
        name: inspect.signature(method).parameters
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_"))
    }


def test_both_faces_of_the_client_have_the_same_methods() -> None:
    assert public_methods(Client) == public_methods(aio.Client)
    for name in set(public_methods(Client)) - {"__init__", "open", "open_tensors"}:
        assert inspect.iscoroutinefunction(getattr(aio.Client, name)), name
