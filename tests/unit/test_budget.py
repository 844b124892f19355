"""What may be allocated for staging, whatever sets the limit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ckptd_daemon.save.arena import budget, slots
from ckptd_daemon.save.arena.budget import room_bytes
from ckptd_proto import errors
from fakes.require_real import need_root

MIB = 1 << 20


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the limits of this process are read; nothing is there yet."""
    directory = tmp_path / "cgroup"
    directory.mkdir()
    membership = tmp_path / "membership"
    membership.write_text("0::/pods/pod1/box\n4:memory:/pods/pod1/box\n1:cpu,cpuacct:/\n")
    monkeypatch.setattr(budget, "_CGROUPS", directory)
    monkeypatch.setattr(budget, "_MEMBERSHIP", membership)
    return directory


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Path]:
    """A /dev/shm as containers have it by default: 64 MB."""
    need_root()
    directory = tmp_path / "shm"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def v2(group: Path, limit: str, used: int, cache: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def v1(group: Path, limit: int, used: int, cache: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"inactive_file 5\ntotal_inactive_file {cache}\n")


def test_without_limits_the_node_and_the_filesystem_say(cgroups: Path) -> None:
    assert not list(cgroups.iterdir())
    memory = psutil.virtual_memory()
    assert 0 < room_bytes(Path("/dev/shm")) <= memory.total


def test_the_limit_of_version_2_counts_less_what_is_used_and_cannot_be_dropped(
    cgroups: Path,
) -> None:
    v2(cgroups / "pods/pod1/box", str(100 * MIB), 90 * MIB, cache=5 * MIB)
    assert room_bytes(Path("/dev/shm")) == 15 * MIB


def test_the_tightest_of_the_groups_above_counts(cgroups: Path) -> None:
    v2(cgroups / "pods/pod1/box", "max", 90 * MIB)
    v2(cgroups / "pods/pod1", str(100 * MIB), 93 * MIB)
    v2(cgroups / "pods", str(200 * MIB), 100 * MIB)
    assert room_bytes(Path("/dev/shm")) == 7 * MIB


def test_the_limit_of_version_1_counts_and_its_huge_number_is_none(cgroups: Path) -> None:
    v1(cgroups / "memory/pods/pod1/box", 0x7FFFFFFFFFFFF000, 90 * MIB)
    v1(cgroups / "memory/pods/pod1", 100 * MIB, 95 * MIB, cache=4 * MIB)
    assert room_bytes(Path("/dev/shm")) == 9 * MIB


def test_a_group_that_is_over_its_limit_leaves_nothing(cgroups: Path) -> None:
    v2(cgroups / "pods/pod1/box", str(100 * MIB), 101 * MIB)
    assert room_bytes(Path("/dev/shm")) == 0


def test_in_a_container_that_sees_only_its_own_groups_their_root_counts(cgroups: Path) -> None:
    v2(cgroups, str(100 * MIB), 99 * MIB)
    assert room_bytes(Path("/dev/shm")) == MIB


def test_a_small_shm_counts(cgroups: Path, shm: Path) -> None:
    assert 60 * MIB < room_bytes(shm) <= 64 * MIB


def test_a_slot_for_which_the_filesystem_has_no_pages_is_refused_and_leaves_nothing(
    shm: Path,
) -> None:
    (shm / "others").write_bytes(bytes(60 * MIB))
    with pytest.raises(errors.ResourceExhausted) as refused:
        slots.create(shm, 8 * MIB)
    assert refused.value.need_bytes == 8 * MIB
    assert refused.value.free_bytes is not None
    assert refused.value.free_bytes <= 4 * MIB
    assert [path.name for path in shm.iterdir()] == ["others"]
