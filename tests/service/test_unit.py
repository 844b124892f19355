"""The systemd unit, judged by systemd itself."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path

import pytest

from ckptd_daemon.config import Config
from fakes.require_real import need_programs

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "ckptd.service"
MOUNT = SYSTEMD / "dev-shm-ckptd.mount"


@pytest.fixture
def service() -> configparser.SectionProxy:
    return _read(UNIT)["Service"]


def _read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way
    unit.read(path)
    return unit


def test_systemd_accepts_the_units_without_a_word() -> None:
    need_programs("systemd-analyze")
    # Its exit status is 0 even for a unit it complains about: silence is the proof.
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", UNIT, MOUNT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verify.returncode, verify.stdout, verify.stderr) == (0, "", "")


def test_systemd_complains_about_a_unit_with_a_mistake(tmp_path: Path) -> None:
    need_programs("systemd-analyze")
    broken = tmp_path / UNIT.name
    broken.write_text(UNIT.read_text().replace("Type=notify", "Type=notfy"))
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", broken],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "notfy" in verify.stderr


def test_systemd_keeps_what_is_staged_and_who_owns_it(service: configparser.SectionProxy) -> None:
    assert service["Type"] == "notify"
    assert service["RemoveIPC"] == "no"
    assert service["StateDirectory"] == service["RuntimeDirectory"] == "ckptd"
    assert not {"DynamicUser", "PrivateTmp", "PrivateUsers", "ProtectHome"} & set(service)


def test_saves_are_staged_in_the_memory_that_systemd_mounts() -> None:
    mount, where = _read(MOUNT)["Mount"], "/dev/shm/ckptd"
    assert mount["Where"] == where == "/" + MOUNT.stem.replace("-", "/")
    assert _read(UNIT)["Unit"]["RequiresMountsFor"] == where
    assert f"Environment=CKPTD_ARENA_DIR={where}" in UNIT.read_text().splitlines()


def test_systemd_waits_longer_than_the_daemon_drains(service: configparser.SectionProxy) -> None:
    assert float(service["TimeoutStopSec"]) > Config.model_fields["drain_s"].default + 10


def test_systemd_can_make_the_user_of_the_unit(service: configparser.SectionProxy) -> None:
    need_programs("systemd-sysusers")
    users = SYSTEMD / "ckptd.sysusers.conf"
    trial = subprocess.run(
        ["systemd-sysusers", "--dry-run", users], capture_output=True, text=True, check=True
    )
    assert f"user '{service['User']}'" in trial.stdout + trial.stderr
