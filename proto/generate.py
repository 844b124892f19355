"""Regenerate the Python modules of the wire contract.

    python proto/generate.py            rewrite the checked-in modules
    python proto/generate.py --check    fail if they differ from the .proto files

Needs the pinned tools of the extra `proto`. They are pinned to the oldest
versions we support because generated code refuses to load on an older runtime.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OUTPUTS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(into: Path) -> list[Path]:
    """Write the modules for every .proto below ROOT to *into*; return their relative paths."""
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [
        f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in OUTPUTS[2:]
    ]
    outputs = [f"--{name}_out={into}" for name in OUTPUTS]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *plugins, *outputs, *sources]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    return sorted(path.relative_to(into) for path in into.rglob("*_pb2*.py*"))


def stale_modules(fresh_root: Path, fresh: list[Path]) -> list[Path]:
    """Return the modules that differ between *fresh_root* and ROOT, or exist in only one."""
    kept = [
        path.relative_to(ROOT)
        for path in ROOT.rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    ]
    return [
        path
        for path in sorted({*fresh, *kept})
        if path not in fresh
        or path not in kept
        or not filecmp.cmp(fresh_root / path, ROOT / path, shallow=False)
    ]


def main() -> int:
    """Write or compare, and say which modules differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
        stale = stale_modules(Path(scratch), fresh)
        for path in stale:
            print(f"{'stale' if check else 'wrote'} {path}")
            if check:
                continue
            if path in fresh:
                shutil.copyfile(Path(scratch, path), ROOT / path)
            else:
                (ROOT / path).unlink()
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
