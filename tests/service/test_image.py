"""The Dockerfile, built for real; its daemon and a neighbour that uses it, as in a pod."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.demo import origin
from fakes.image import Workshop, cache_dir
from fakes.require_real import need_programs, need_root

TAG = "localhost/ckptd:test"

# Making the base image and downloading the wheels is most of it, once.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    need_root()
    need_programs("buildah", "debootstrap")
    return Workshop(cache_dir() / "image")


@pytest.fixture(scope="module")
def configuration(workshop: Workshop) -> dict[str, object]:
    return workshop.build(TAG)


@pytest.fixture
def container(workshop: Workshop, configuration: dict[str, object]) -> Iterator[str]:
    name = workshop.buildah("from", "--pull-never", TAG)
    yield name
    workshop.buildah("rm", name)


def test_the_image_runs_the_daemon_as_nobody_in_particular(
    configuration: dict[str, object],
) -> None:
    assert configuration["User"] == "10001:10001"
    assert configuration["Entrypoint"] == ["ckptd", "serve"]
    assert configuration["Healthcheck"]["Test"] == ["CMD", "ckptd", "status"]  # type: ignore[index]  # JSON
    assert set(configuration["Volumes"]) == {"/run/ckptd", "/var/lib/ckptd"}  # type: ignore[call-overload]  # JSON


def test_the_image_has_no_torch(workshop: Workshop, container: str) -> None:
    look = "from importlib.util import find_spec as f; print(f('torch'), f('ckptd') is not None)"
    with workshop.start(container, "/opt/ckptd/bin/python", "-c", look) as python:
        assert python.communicate(timeout=60)[0].split() == ["None", "True"]


def test_the_daemon_of_the_image_answers_a_neighbours_fetch(
    workshop: Workshop, container: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(os.urandom(1 << 20) * 40)
    with (
        origin.serving(weights) as remote,
        workshop.start(container, "ckptd", "serve") as daemon,
    ):
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ckptd ready unix:/run/ckptd/ckptd.sock\n"
            assert _run(workshop, container, "ckptd", "status")
            path = _run(workshop, container, "ckptd", "fetch", "--quiet", remote.url)
            assert path.startswith("/var/lib/ckptd/")
            assert _run(workshop, container, "sha256sum", path).split()[0] == _sha256(weights)
            _run(workshop, container, "ckptd", "stop")
            assert daemon.wait(60) == 0
        finally:
            daemon.send_signal(signal.SIGTERM)


def _run(workshop: Workshop, container: str, *command: str) -> str:
    with workshop.start(container, *command) as process:
        told, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    return told.strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
