"""Builds the Dockerfile for real, with buildah, and runs what it built.

The base image comes from Debian's packages and stands in for the official `python:3.11-slim`; it
and the wheels are kept in a cache directory, because making them takes a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim"
SUITE = "bookworm"  # its python3 is 3.11


def cache_dir() -> Path:
    """Where slow things are kept from one run to the next, outside the checkout."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "ckptd-ci")


class Workshop:
    """buildah with images and containers of its own, below *folder*; the base image is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        settings = folder / "storage.conf"
        settings.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        )
        self._environment = os.environ | {"CONTAINERS_STORAGE_CONF": str(settings)}

    def buildah(self, *arguments: str | Path) -> str:
        """Run one buildah command; return its stdout."""
        done = subprocess.run(
            ["buildah", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"buildah {arguments}: {done.stderr[-3000:]}"
        return done.stdout.strip()

    def build(self, tag: str) -> dict[str, object]:
        """Build the Dockerfile as *tag*; return the image's configuration."""
        self._make_base()
        wheels, settings = self._wheels(), self.folder / "pip.conf"
        settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        mounts = ["-v", f"{wheels}:/wheels:ro", "-v", f"{settings}:/etc/pip.conf:ro"]
        how = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker"]
        self.buildah("build", *how, *mounts, "-t", tag, "-f", "Dockerfile", ".")
        inspected = json.loads(self.buildah("inspect", "--type", "image", tag))
        configuration: dict[str, object] = inspected["Docker"]["config"]
        return configuration

    def start(self, container: str, *command: str) -> subprocess.Popen[str]:
        """Start *command* in *container* as the image's user, with its environment and volumes.

        All commands of one container share its volumes, as the containers of a pod do.
        """
        return subprocess.Popen(
            [
                *["buildah", "run", "--isolation", "chroot", "--network", "host"],
                container,
                "--",
                *command,
            ],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _make_base(self) -> None:
        if self.buildah("images", "--quiet", "--filter", f"reference={BASE}"):
            return
        rootfs = self.folder / "rootfs"
        shutil.rmtree(rootfs, ignore_errors=True)  # what a killed run has left
        packages = "--include=python3,python3-venv"
        strap = ["debootstrap", "--variant=minbase", packages, SUITE, rootfs]
        subprocess.run(strap, check=True, stdout=subprocess.DEVNULL)
        (rootfs / "usr/bin/python").symlink_to("python3")
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, rootfs, "/")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.buildah("config", "--env", path, "--cmd", "python3", container)
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(rootfs)

    def _wheels(self) -> Path:
        """Return a folder with the wheels of the base dependencies and the build backend."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
        wheels = self.folder / "wheels"
        what = ["--python-version", "3.11", "--only-binary", ":all:", "--dest", wheels]
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "-c", "constraints.txt", *what]
        subprocess.run([*fetch, *wanted], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        return wheels
