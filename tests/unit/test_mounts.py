from __future__ import annotations

from pathlib import Path

import pytest

from ckptd_daemon import config, mounts, start
from ckptd_proto import errors


def test_a_path_is_on_the_innermost_mount_whether_it_exists_or_not() -> None:
    assert mounts.filesystem(Path("/proc/self/status")) == "proc"
    assert mounts.filesystem(Path("/dev/shm/not/yet/there")) == "tmpfs"
    assert mounts.filesystem(Path("/none")) == mounts.filesystem(Path("/"))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "ceph", "beegfs", "fuse.sshfs"])
def test_filesystems_shared_between_machines_are_known(kind: str) -> None:
    assert mounts.is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"])
def test_local_ones_are_not_taken_for_them(kind: str) -> None:
    assert not mounts.is_network(kind)


def test_a_state_directory_on_a_network_filesystem_needs_the_users_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = mounts.filesystem(tmp_path)
    monkeypatch.setattr(mounts, "NETWORK_FILESYSTEMS", frozenset({here}))
    state = tmp_path / "state"
    settings = config.load({"state_dir": state}, file=None)
    with pytest.raises(errors.FailedPrecondition, match=rf"network filesystem \({here}\)"):
        start.make_state_dir(settings)
    assert not state.exists()
    start.make_state_dir(settings.model_copy(update={"allow_network_fs": True}))
    assert state.is_dir()
