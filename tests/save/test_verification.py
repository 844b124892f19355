"""`ckptd verify` finds whatever is not as it was saved, and mends it from another copy."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ckptd
from ckptd.cli import verification as cli
from ckptd.saving import repair
from ckptd.saving.verification import Findings, verify, verify_below
from ckptd.tensors.images import Held
from ckptd_proto.crc import crc32c
from fakes.daemon import Daemon, arena_of, short_directory
from fakes.running import ckptd as run_ckptd

IMAGE = "__0_0.distcp"


@dataclass(frozen=True)
class Remembered:
    """A step that its daemon has in memory, and a copy of it."""

    daemon: Daemon
    path: Path
    before: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with e/r/step-7: 9 MiB, so three chunks of the image."""
    root = tmp_path_factory.mktemp("root")
    with (
        short_directory() as short,
        Daemon(short) as daemon,
        ckptd.Checkpointer(root, experiment="e", run="r", socket=daemon.socket) as ckpt,
    ):
        state = {"x": torch.arange((9 << 20) // 8), "note": "hello"}
        ckpt.save(state, step=7, metrics={"loss": 0.5}).result(timeout=60)
    yield root


@pytest.fixture
def step(original: Path, tmp_path: Path) -> Path:
    """A copy of the step, to damage."""
    shutil.copytree(original / "e", tmp_path / "e")
    return tmp_path / "e" / "r" / "step-7"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # no daemon, and none may be started
    return run_ckptd(*map(str, arguments), env=dict(os.environ) | {"CKPTD_AUTOSTART": "0"})


def test_what_was_saved_is_sound(step: Path) -> None:
    done = run("verify", step)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["sound", str(step)])


def test_all_below_a_root_are_verified(step: Path) -> None:
    shutil.copytree(step, step.with_name("step-8"))
    done = run("verify", step.parents[2], "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(each["path"]).name, each["sound"]) for each in told] == [
        ("step-7", True),
        ("step-8", False),  # its manifest is that of step 7
    ]


def damage_image(step: Path) -> None:
    flip(step / IMAGE, 5 << 20)


def damage_metadata(step: Path) -> None:
    flip(step / ".metadata", 10)


def cut_image(step: Path) -> None:
    os.truncate(step / IMAGE, 4 << 20)


def lose_image(step: Path) -> None:
    (step / IMAGE).unlink()


def lose_sums(step: Path) -> None:
    (step / f"{IMAGE}.sums").unlink()


def damage_sums(step: Path) -> None:
    flip(step / f"{IMAGE}.sums", -3)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (damage_image, IMAGE),
    (damage_metadata, ".metadata"),
    (cut_image, IMAGE),
    (lose_image, IMAGE),
    (lose_sums, f"{IMAGE}.sums"),
    (damage_sums, f"{IMAGE}.sums"),
]


@pytest.mark.parametrize(("damage", "file"), DAMAGES)
def test_what_is_bad_is_named_and_mended_from_a_copy(
    step: Path, original: Path, damage: Callable[[Path], None], file: str
) -> None:
    damage(step)
    done = run("verify", step)
    assert (done.returncode, done.stdout.split()[:2]) == (5, ["DAMAGED", str(step / file)])
    copy = original / "e" / "r" / "step-7"
    done = run("verify", step, "--repair", "--from", copy)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["mended", str(step / file)])
    for path in copy.iterdir():
        assert (step / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in step.iterdir()} == {path.name for path in copy.iterdir()}


@pytest.mark.parametrize("damage", [lose_sums, damage_sums])
def test_checksums_that_were_lost_are_made_again_from_the_image(
    step: Path, damage: Callable[[Path], None]
) -> None:
    damage(step)
    assert run("verify", step, "--repair").returncode == 0
    assert verify(step).is_sound


def test_two_damaged_copies_make_a_good_one(step: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "step-7"
    shutil.copytree(step, other)
    flip(step / IMAGE, 0)
    flip(other / IMAGE, 8 << 20)
    assert run("verify", step, "--repair", "--from", other).returncode == 0


def test_what_no_copy_has_stays_as_it_is(step: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "step-7"
    flip(step / IMAGE, 0)
    shutil.copytree(step, other)
    before = (step / IMAGE).read_bytes()
    done = run("verify", step, "--repair", "--from", other)
    assert (done.returncode, "--from" in done.stderr) == (5, True)
    assert (step / IMAGE).read_bytes() == before
    assert not list(step.glob("*.tmp"))


def test_a_copy_of_another_attempt_mends_nothing(
    step: Path, original: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "step-7"
    shutil.copytree(original / "e" / "r" / "step-7", other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"attempt": "', '"attempt": "x'))
    flip(step / IMAGE, 0)
    assert run("verify", step, "--repair", "--from", other).returncode == 5


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remembered]:
    root = tmp_path_factory.mktemp("root")
    with short_directory() as short, Daemon(short) as daemon:
        with ckptd.Checkpointer(root, experiment="e", run="r", socket=daemon.socket) as ckpt:
            state = {"x": torch.arange((9 << 20) // 8), "note": "hello"}
            path = ckpt.save(state, step=7).result(timeout=60).path
        shutil.copytree(path, root / "before")
        yield Remembered(daemon, path, root / "before")


def lose_image_and_sums(step: Path) -> None:
    lose_image(step)
    lose_sums(step)


@pytest.mark.parametrize("damage", [damage_image, damage_metadata, lose_image_and_sums])
def test_what_is_bad_is_mended_from_the_memory_of_the_node(
    remembered: Remembered, damage: Callable[[Path], None]
) -> None:
    damage(remembered.path)
    done = run_ckptd("verify", str(remembered.path), "--repair", env=remembered.daemon.env)
    assert done.returncode == 0, done.stderr
    for path in remembered.before.iterdir():
        assert (remembered.path / path.name).read_bytes() == path.read_bytes()
    assert len(list(remembered.path.iterdir())) == len(list(remembered.before.iterdir()))


def test_memory_that_is_not_what_was_saved_mends_nothing(remembered: Remembered) -> None:
    lose_image(remembered.path)
    for slot in arena_of(remembered.daemon.state_dir).glob("*.slot"):
        with slot.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"x" * (slot.stat().st_size - (1 << 20)))
    done = run_ckptd("verify", str(remembered.path), "--repair", env=remembered.daemon.env)
    assert done.returncode == 5
    assert not (remembered.path / IMAGE).exists()


def test_a_file_that_another_step_links_is_replaced_and_not_changed(
    step: Path, original: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    flip(step / IMAGE, 0)
    os.link(step / IMAGE, linked)
    before = linked.read_bytes()
    copy = original / "e" / "r" / "step-7"
    assert run("verify", step, "--repair", "--from", copy).returncode == 0
    assert linked.read_bytes() == before


@pytest.mark.parametrize(
    "manifest", [b"", b"{}", b"[]", b'{"format": 1, "step": 7, "images": {"a": {}}}']
)
def test_a_damaged_manifest_is_named(step: Path, manifest: bytes) -> None:
    (step / "manifest.json").write_bytes(manifest)
    done = run("verify", step)
    assert (done.returncode, str(step / "manifest.json") in done.stdout) == (5, True)


def changed(checkpoint: Path, **fields: object) -> Path:
    """Have the manifest of a checkpoint say something else."""
    path = checkpoint / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
    return checkpoint


@pytest.mark.parametrize("left", [None, b""])
def test_a_manifest_comes_from_a_copy_that_has_the_same_checksums(
    step: Path, original: Path, left: bytes | None
) -> None:
    manifest, copy = step / "manifest.json", original / "e" / "r" / "step-7"
    before = manifest.read_bytes()
    manifest.unlink()
    if left is not None:
        manifest.write_bytes(left)
    done = run("verify", step, "--repair", "--from", copy)
    assert (done.returncode, f"mended   {manifest}" in done.stdout) == (0, True)
    assert manifest.read_bytes() == before


def test_a_manifest_that_still_names_its_attempt_needs_no_checksums(
    step: Path, original: Path
) -> None:
    manifest, copy = step / "manifest.json", original / "e" / "r" / "step-7"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    flip(step / IMAGE, 0)
    (step / f"{IMAGE}.sums").unlink()
    done = run("verify", step, "--repair", "--from", copy)
    assert done.returncode == 0, done.stdout
    assert [name for name in ("manifest.json", IMAGE) if f"{name}\n" in done.stdout] == [
        "manifest.json",
        IMAGE,
    ]


@pytest.mark.parametrize(
    "fields", [{"run": "other"}, {"step": 8}, {"attempt": ""}, {"images": None}]
)
def test_a_manifest_of_another_checkpoint_is_not_taken(
    step: Path, original: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    copy = changed(shutil.copytree(original / "e/r/step-7", tmp_path / "copy/step-7"), **fields)
    (step / "manifest.json").write_bytes(b"")
    assert run("verify", step, "--repair", "--from", copy).returncode == 5
    assert (step / "manifest.json").read_bytes() == b""


def test_a_manifest_that_vouches_for_other_bytes_is_not_taken(step: Path, original: Path) -> None:
    flip(step / f"{IMAGE}.sums", 20)
    flip(step / IMAGE, 0)
    (step / "manifest.json").write_bytes(b"")
    copy = original / "e" / "r" / "step-7"
    assert run("verify", step, "--repair", "--from", copy).returncode == 5


def test_a_newer_checkpoint_is_told_of_after_all_others_were_looked_at(step: Path) -> None:
    later = changed(shutil.copytree(step, step.with_name("step-6")), format=2, step=6)
    before = (later / "manifest.json").read_bytes()
    done = run("verify", step.parent, "--repair")
    assert f"sound    {step}" in done.stdout
    assert "has format 2" in done.stderr
    assert done.returncode not in (0, 1, 5)
    assert (later / "manifest.json").read_bytes() == before


def test_a_lost_manifest_is_named(step: Path) -> None:
    (step / "manifest.json").unlink()
    assert run("verify", step).returncode == 5


def test_an_index_that_lacks_a_piece_is_incomplete(step: Path) -> None:
    """Whoever made the manifest vouches for it; it is no checkpoint for all that."""
    import hashlib

    index = json.loads((step / "index.json").read_bytes())
    index["tensors"]["x"]["chunks"][0]["sizes"][0] -= 1
    data = json.dumps(index).encode()
    (step / "index.json").write_bytes(data)
    sums = {"format": 1, "size_bytes": len(data), "chunk_bytes": 4 << 20, "crc32c": [crc32c(data)]}
    (step / "index.json.sums").write_bytes(raw := json.dumps(sums).encode())
    manifest = json.loads((step / "manifest.json").read_bytes())
    manifest["images"]["index.json"] = {
        "size_bytes": len(data),
        "sums_sha256": hashlib.sha256(raw).hexdigest(),
    }
    (step / "manifest.json").write_text(json.dumps(manifest))
    done = run("verify", step)
    assert (done.returncode, "pieces of x" in done.stdout) == (5, True)


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    assert run("verify", tmp_path).returncode == 3
    assert run("show", tmp_path / "step-1").returncode == 3


def test_a_checkpoint_is_shown(step: Path) -> None:
    done = run("show", step)
    assert "e/r step 7" in done.stdout
    assert "loss=0.5" in done.stdout
    told = json.loads(run("show", step, "--json").stdout)
    assert told["tensors"] == {"x": {"dtype": "int64", "shape": [(9 << 20) // 8], "chunks": 1}}
    assert told["objects"] == ["note"]


def test_all_that_is_wrong_with_a_file_is_named(step: Path) -> None:
    lose_sums(step)
    os.truncate(step / IMAGE, 5 << 20)
    done = run("verify", step)
    assert done.returncode == 5
    assert f"{step / IMAGE}.sums is missing" in done.stdout
    assert f"{step / IMAGE} has {5 << 20} bytes instead of" in done.stdout


def test_chunks_of_a_file_that_is_cut_off_are_named_too(step: Path, original: Path) -> None:
    flip(step / IMAGE, 5)
    os.truncate(step / IMAGE, 5 << 20)
    done = run("verify", step)
    assert f"{step / IMAGE} has {5 << 20} bytes instead of" in done.stdout
    assert f"{step / IMAGE} is not what was saved (chunks 0, 1, 2)" in done.stdout
    done = run("verify", step, "--repair", "--from", original / "e" / "r" / "step-7")
    assert (done.returncode, done.stdout.count("mended")) == (0, 1)


def test_a_file_that_is_too_long_is_otherwise_what_was_saved(step: Path) -> None:
    with (step / IMAGE).open("ab") as file:
        file.write(b"more")
    (fault,) = verify(step).faults
    assert "bytes instead of" in fault.what


def test_a_chunk_that_cannot_be_read_hides_no_other(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(step / IMAGE, 9 << 20)
    preadv = os.preadv

    def failing(fd: int, parts: list[memoryview], start: int) -> int:
        if start == 4 << 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, parts, start)

    monkeypatch.setattr(os, "preadv", failing)
    faults = {fault.what: fault.chunks for fault in verify(step).faults}
    assert faults == {
        "is not what was saved": (2,),
        f"cannot be read ({os.strerror(errno.EIO)})": (1,),
    }


def test_of_many_faults_some_are_named_and_the_others_counted(step: Path) -> None:
    manifest = json.loads((step / "manifest.json").read_bytes())
    image = manifest["images"][IMAGE]
    manifest["images"] |= {f"lost-{number}": image for number in range(30)}
    (step / "manifest.json").write_text(json.dumps(manifest))
    done = run("verify", step)
    assert (done.returncode, len(done.stdout.splitlines())) == (5, 21)
    assert done.stdout.splitlines()[-1] == f"DAMAGED  {step} and 40 more"
    assert len(json.loads(run("verify", step, "--json").stdout)["faults"]) == 60


@pytest.fixture
def three(step: Path) -> Path:
    """A run with steps 7, 8 and 9."""
    for number in (8, 9):
        other = step.with_name(f"step-{number}")
        shutil.copytree(step, other)
        manifest = other / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"step": 7', f'"step": {number}'))
    return step.parent


def removed(run: Path, number: int) -> None:
    """Remove a step as a daemon does: by name first."""
    gone = run / f"{number}.gone"
    (run / f"step-{number}").rename(gone)
    shutil.rmtree(gone)


def numbers(found: Iterator[Findings]) -> list[tuple[str, bool]]:
    return [(findings.path.name, findings.is_sound) for findings in found]


def test_a_step_that_is_removed_after_it_was_listed_is_skipped(three: Path) -> None:
    found = verify_below(three)
    assert next(found).path.name == "step-7"
    removed(three, 8)
    assert numbers(found) == [("step-9", True)]


@pytest.mark.parametrize("name", ["manifest.json", f"{IMAGE}.sums", "index.json"])
def test_a_step_that_goes_while_it_is_read_is_no_damage(
    three: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without locks, as on some network filesystems, nothing keeps a removal waiting."""
    read = Held.read

    def going(held: Held, asked: str) -> bytes:
        if asked == name and held.is_at(three / "step-8"):
            removed(three, 8)
        return read(held, asked)

    monkeypatch.setattr(Held, "read", going)
    assert numbers(verify_below(three)) == [("step-7", True), ("step-9", True)]


def test_a_step_that_is_being_removed_ends_nothing_and_is_looked_at_again(three: Path) -> None:
    with (three / "step-8" / "manifest.json").open("rb") as removing:
        fcntl.flock(removing, fcntl.LOCK_EX)
        found = verify_below(three)
        assert [next(found).path.name for _ in range(2)] == ["step-7", "step-9"]
        fcntl.flock(removing, fcntl.LOCK_UN)  # it stays: somebody else was reading it
        assert numbers(found) == [("step-8", True)]
        fcntl.flock(removing, fcntl.LOCK_EX)
        found = verify_below(three)
        assert [next(found).path.name for _ in range(2)] == ["step-7", "step-9"]
        removed(three, 8)
        assert numbers(found) == []


def test_a_step_that_is_being_removed_for_ever_is_told_after_the_others(three: Path) -> None:
    with (three / "step-8" / "manifest.json").open("rb") as removing:
        fcntl.flock(removing, fcntl.LOCK_EX)
        done = run("verify", three)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["sound", "sound"]
        assert done.returncode not in (0, 5)
        assert "step-8 is being removed" in done.stderr


def test_a_step_that_is_committed_meanwhile_is_verified_if_another_went(three: Path) -> None:
    shutil.move(three / "step-9", three / "later")
    found = verify_below(three)
    next(found)
    removed(three, 8)
    shutil.move(three / "later", three / "step-9")
    assert numbers(found) == [("step-9", True)]


def test_a_step_that_goes_while_it_is_mended_ends_nothing(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(three / "step-8" / IMAGE, 0)

    def going(findings: Findings, copies: tuple[Path, ...]) -> tuple[Findings, list[str]]:
        if findings.path.name == "step-8":
            removed(three, 8)
        return mend(findings, copies)

    mend = repair.repair
    monkeypatch.setattr(repair, "repair", going)
    done = CliRunner().invoke(cli.verify, [str(three), "--repair"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == ["sound", "sound"]
