"""`ckptd fetch` and `ckptd cache`, as a shell sees them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.running import CKPTD, ckptd

WRONG = "0" * 64


def test_one_path_per_reference_and_nothing_else(daemon: Daemon, origin: Origin) -> None:
    for name in ("a", "b"):
        origin.put(name, name.encode())
    done = ckptd("fetch", origin.url("a"), origin.url("b"), env=daemon.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(line).read_text() for line in done.stdout.splitlines()] == ["a", "b"]
    done = ckptd("fetch", "--offline", "-q", "--json", origin.url("a"), env=daemon.env)
    found = json.loads(done.stdout)
    assert (Path(found["path"]).read_text(), found["size_bytes"]) == ("a", 1)


def test_a_copy_is_the_users_own(daemon: Daemon, origin: Origin, tmp_path: Path) -> None:
    origin.put("a", b"data")
    (tmp_path / "old").write_bytes(b"old content")
    (tmp_path / "dir").mkdir()
    for target, place in (("new", "new"), ("old", "old"), ("dir", "dir/a")):
        done = ckptd("fetch", origin.url("a"), "-o", str(tmp_path / target), env=daemon.env)
        copy = tmp_path / place
        assert (done.returncode, done.stdout) == (0, f"{copy}\n")
        assert (copy.read_bytes(), copy.stat().st_nlink) == (b"data", 1)
        assert stat.S_IMODE(copy.stat().st_mode) == 0o666 & ~_umask()
        copy.write_bytes(b"mine")
    done = ckptd("fetch", origin.url("a"), env=daemon.env)
    assert Path(done.stdout.strip()).read_bytes() == b"data"


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_leaves_the_old_file_and_no_half_a_one(
    daemon: Daemon, origin: Origin, tmp_path: Path
) -> None:
    origin.put("a", bytes(4 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        target = tmp_path / "model"
        target.write_bytes(b"old")
        done = ckptd("fetch", "--json", origin.url("a"), "-o", str(target), env=daemon.env)
        assert done.returncode == 7
        told = json.loads(done.stderr)
        assert told["need_bytes"] == 4 << 20
        assert told["free_bytes"] < 4 << 20
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model": b"old"}
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_each_kind_of_failure_has_its_exit_code(
    daemon: Daemon, origin: Origin, tmp_path: Path
) -> None:
    for name, fault in (("forbidden", Fault.FORBID), ("gone", Fault.LOSE), ("fine", None)):
        origin.put(name, b"data").lasting = fault
    fine = origin.url("fine")
    cases = [
        (2, ["gopher://host/model"], "InvalidArgument"),
        (2, [fine, fine, "--sha256", WRONG], "InvalidArgument"),
        (2, [fine, fine, "-o", str(tmp_path / "file")], "InvalidArgument"),
        (2, [fine, "--keep", "soon"], "InvalidArgument"),
        (2, [f"{fine}#sha265={WRONG}"], "InvalidArgument"),
        (3, [origin.url("gone")], "NotFound"),
        (3, [origin.url("never"), "--offline"], "NotFound"),
        (4, [origin.url("forbidden")], "PermissionDenied"),
        (4, [fine, "-o", "/proc/model"], "PermissionDenied"),
        (4, [origin.url("gone"), "-o", "/none/model"], "FailedPrecondition"),
        (2, [str(tmp_path), "-o", str(tmp_path / "copy")], "InvalidArgument"),
        (5, [fine, "--sha256", WRONG], "DataLoss"),
        (5, [f"{fine}#SHA256={WRONG}"], "DataLoss"),
    ]
    for code, arguments, name in cases:
        done = ckptd("fetch", *arguments, "--json", env=daemon.env)
        told = json.loads(done.stderr)
        assert (done.returncode, told["exit_code"], told["error"]) == (code, code, name)
        assert done.stdout == ""
        plain = ckptd("fetch", *arguments, env=daemon.env).stderr
        assert plain.startswith("ckptd: ")
        assert plain.count("\n") == 1
    done = ckptd("fetch", fine, env=daemon.env | {"CKPTD_SOCKET": str(tmp_path / "none")})
    assert done.returncode == 6


def test_keep_holds_the_file_for_so_long_after_the_command(daemon: Daemon, origin: Origin) -> None:
    origin.put("a", b"data")
    assert ckptd("fetch", "--keep", "2h", origin.url("a"), env=daemon.env).returncode == 0
    listed = json.loads(ckptd("cache", "ls", "--json", env=daemon.env).stdout)
    assert (listed["leases"], listed["size_bytes"]) == (1, 4)
    done = ckptd("cache", "rm", "--json", listed["key"], env=daemon.env)
    assert (done.returncode, json.loads(done.stderr)["error"]) == (4, "FailedPrecondition")
    assert ckptd("cache", "rm", "no-such-key", env=daemon.env).returncode == 3
    assert "is kept for 120 min more" in json.loads(done.stderr)["message"]
    with daemon.client().open(origin.url("a")):
        assert ckptd("cache", "rm", "--force", listed["key"], env=daemon.env).returncode == 4
    done = ckptd("cache", "rm", "--force", listed["key"], env=daemon.env)
    assert (done.returncode, done.stdout) == (0, "freed 4 bytes\n")


def test_a_blob_that_nobody_holds_can_be_dropped(daemon: Daemon, origin: Origin) -> None:
    origin.put("a", b"data")
    with daemon.client().open(origin.url("a")):
        pass
    key = json.loads(ckptd("cache", "ls", "--json", env=daemon.env).stdout)["key"]
    done = ckptd("cache", "rm", "--json", key, env=daemon.env)
    assert json.loads(done.stdout) == {"freed_bytes": 4}
    assert ckptd("cache", "ls", env=daemon.env).stdout == ""


def test_an_interrupted_command_ends_at_once_in_words(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    origin.hold(after_bytes=1 << 20)
    command = [*CKPTD, "fetch", origin.url("a")]
    process = subprocess.Popen(
        command, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert origin.held.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (
        130,
        "",
        "ckptd: interrupted; the daemon keeps what has come, for whoever asks again",
    )


def test_a_stated_hash_is_checked(daemon: Daemon, origin: Origin) -> None:
    origin.put("a", b"data")
    right = hashlib.sha256(b"data").hexdigest()
    done = ckptd("fetch", origin.url("a"), "--sha256", right, env=daemon.env)
    assert Path(done.stdout.strip()).read_bytes() == b"data"
