"""`ckptd bench fetch`, played small: that it measures rightly, never how fast anything is."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.bench import daemons, node, ranks, transfers
from ckptd.bench.contestants import Ckptd, Command, peers
from ckptd.bench.convoy import convoy
from ckptd.bench.figures import Outcome, Row, Series
from ckptd.bench.native import natives
from ckptd.bench.origin import serving
from ckptd.bench.race import race, same
from ckptd.bench.stage import Plan, Stage, stage
from ckptd.bench.worker import Job
from fakes.require_real import need_programs
from fakes.running import ckptd

TINY = Plan(
    size_bytes=(4 << 20) + 5,
    repeats=1,
    files=3,
    file_bytes=70_000,
    ranks=2,
    waiters=16,
    warm_fetches=3,
    starts=1,
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    need_programs("cc", "curl", "openssl")
    found, missing = peers(("curl",))
    folder = tmp_path_factory.mktemp("bench")
    with stage(folder, TINY, found, missing, lambda line: None) as running:
        yield running


def test_a_race_runs_end_to_end_and_leaves_nothing(here: Stage) -> None:
    outcome = transfers.plain(here)
    assert [(row.name, row.problem) for row in outcome.rows] == [("ckptd", ""), ("curl", "")]
    for row in outcome.rows:
        assert len(row.figures["wall_s"].values) == TINY.repeats
        assert row.median("wall_s") > 0
        assert row.median("peak_bytes") > 1 << 20
    assert outcome.rows[0].median("daemon_anon_bytes") > 1 << 20
    assert here.node.client.blobs() == []
    assert {path.name for path in here.scratch.iterdir()} == {"origin", "state"}


def test_tls_is_spoken_by_all_and_trusted_by_the_benchmarks_own_authority(here: Stage) -> None:
    outcome = transfers.tls(here)
    assert [row.problem for row in outcome.rows] == ["", ""]


def test_a_limited_connection_is_counted_as_a_stream(here: Stage) -> None:
    outcome = transfers.limited(here)
    for row in outcome.rows:
        assert row.problem == ""
        assert row.median("streams") > 0
        assert row.median("stream_share") > 0
    names = [row.name for row in outcome.rows]
    assert names[2:] == [
        *(f"ckptd, {count} streams" for count in (4, 8, 16, 24, 32, 48, 64)),
        *(f"C, {count} connections" for count in (32, 48, 64)),
    ]
    assert len(outcome.verdicts) == 10


def test_what_a_program_brings_that_does_nothing_else_is_right_bit_for_bit(
    here: Stage, tmp_path: Path
) -> None:
    (native,) = natives(tmp_path, [3], TINY.size_bytes)
    with here.job(here.origin.limited, (here.object(),)) as job, native.fetched(job) as run:
        assert same(here.origin.files / here.object(), run.paths[here.object()])


def test_without_a_compiler_nothing_tells_what_the_machine_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert natives(tmp_path, [3], 1) == []
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    assert natives(tmp_path, [3], 1) == []


def test_small_files_all_arrive(here: Stage) -> None:
    outcome = transfers.small(here)
    assert [(row.name, row.problem) for row in outcome.rows] == [("ckptd", ""), ("curl", "")]


def test_a_hash_that_is_asked_for_is_checked_by_all(here: Stage) -> None:
    outcome = transfers.sha256(here)
    names = [row.name for row in outcome.rows if not row.problem]
    assert names == ["ckptd", "ckptd, sha256", "curl, sha256sum"]
    assert len(outcome.notes) == 1
    wrong = Ckptd(here.node, sha256="0" * 64)
    (row,) = race(here, "sha256", here.origin.plain, (here.object(),), [wrong])
    assert "SHA-256" in row.problem


def test_one_that_delivers_wrong_bytes_is_out_and_named(here: Stage) -> None:
    def write(job: Job, content: str) -> list[str]:
        script = 'cp "$0" "$1" && printf "$2" | dd of="$1" bs=1 seek=99 conv=notrunc'
        source = here.origin.files / job.names[0]
        return ["sh", "-c", script, str(source), str(job.path(job.names[0])), content]

    liar = Command("liar", "1", (lambda job: write(job, "wrong"),))
    short = Command("short", "1", (lambda job: ["touch", str(job.path(job.names[0]))],))
    absent = Command("failing", "1", (lambda job: ["sh", "-c", "echo no luck >&2; exit 3"],))
    honest = Command("honest", "1", (lambda job: write(job, ""),))
    contestants = [liar, short, absent, honest]
    rows = race(here, "plain", here.origin.plain, (here.object(),), contestants)
    assert [(row.name, row.is_wrong, row.problem) for row in rows] == [
        ("liar", True, "object: other bytes than the source has"),
        ("short", True, f"object: 0 bytes instead of {TINY.size_bytes} bytes"),
        ("failing", False, "exit code 3; its last words: no luck"),
        ("honest", False, ""),
    ]


def test_files_are_the_same_only_to_the_last_byte(tmp_path: Path) -> None:
    for name, content in (("a", b"abc"), ("b", b"abc"), ("longer", b"abcd"), ("other", b"abd")):
        (tmp_path / name).write_bytes(content)
    found = {name: same(tmp_path / "a", tmp_path / name) for name in ("b", "longer", "other")}
    assert found == {"b": True, "longer": False, "other": False}
    assert not same(tmp_path / "longer", tmp_path / "a")


def test_ranks_share_what_the_origin_sends_once(here: Stage) -> None:
    outcome = ranks.cold(here)
    assert [row.name for row in outcome.rows] == ["1 rank", "2 ranks"]
    for row in outcome.rows:
        assert row.figures["origin_share"].high == pytest.approx(1.0, abs=0.01)
    assert here.node.client.blobs() == []


def test_warm_fetches_are_timed_at_the_client(here: Stage) -> None:
    outcome = ranks.warm(here)
    for row in outcome.rows:
        assert 0 < row.median("p50_ms") <= row.median("p99_ms")
    assert here.node.client.blobs() == []


def test_a_crowd_waits_and_its_messages_are_counted(here: Stage) -> None:
    outcome = ranks.waiters(here)
    assert [row.name for row in outcome.rows] == ["1 waiter", "16 waiters"]
    assert all(row.median("wall_s") > 0 for row in outcome.rows)


def test_a_daemon_is_started_and_looked_at_while_it_rests(here: Stage) -> None:
    assert daemons.ready(here).rows[0].median("wall_s") > 0
    rested = daemons.rest(here)
    assert all(row.median("anon_bytes") > 1 << 20 for row in rested.rows)


def test_streams_and_a_busy_loop_are_measured_together_and_apart(here: Stage) -> None:
    outcome = convoy(here)
    assert len(outcome.rows) == 9
    assert len(outcome.notes) == 4
    assert here.node.client.blobs() == []


def run(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    tiny = ["--gib", "0.004", "--repeats", "1", "--case", "plain", "--directory", str(tmp_path)]
    done = ckptd("bench", "fetch", *tiny, *arguments, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_json_says_who_ran_where_and_what_it_took(tmp_path: Path) -> None:
    need_programs("cc", "curl", "openssl")
    code, said, _ = run(tmp_path, "--peers", "curl", "--json", CKPTD_STREAMS="3")
    told = json.loads(said)
    assert (code, told["format"]) == (0, 1)
    machine = told["machine"]
    assert {"ckptd", "python", "curl", "nginx"} <= set(machine["versions"])
    assert machine["settings"]["CKPTD_STREAMS"] == "3"
    assert machine["cores"] > 0
    (case,) = told["cases"]
    assert (case["case"], case["headline"]) == ("plain", "wall_s")
    by_name = {one["name"]: one for one in case["contestants"]}
    assert set(by_name) == {"ckptd", "curl"}
    assert by_name["ckptd"]["ratio"] == 1.0
    assert set(by_name["curl"]["figures"]["cpu_s"]) == {"median", "min", "max", "values"}
    assert all(set(target) == {"text", "is_met"} for target in case["targets"])
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_fail_the_command_after_its_table(tmp_path: Path) -> None:
    need_programs("openssl")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "curl"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo curl 0.1 || : >"$5/object"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    code, said, error = run(tmp_path, "--peers", "curl", PATH=path)
    assert code == 5
    assert "curl does not count: object: 0 bytes instead of" in said
    assert "plain: curl delivered object: 0 bytes instead of" in error.splitlines()[-1]


def test_who_is_not_installed_is_named(tmp_path: Path) -> None:
    need_programs("openssl")
    (tmp_path / "bin").mkdir()
    for name in ("nginx", "openssl"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/{'s' * (name == 'nginx')}bin/{name}")
    code, said, _ = run(tmp_path, "--peers", "aria2c", "--markdown", PATH=str(tmp_path / "bin"))
    assert code == 0
    assert "- aria2c: not installed (apt-get install aria2)" in said
    assert "| **ckptd** |" in said


def test_without_nginx_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with (
        pytest.raises(errors.FailedPrecondition, match="apt-get install nginx-light"),
        serving(tmp_path / "origin"),
    ):
        pytest.fail("it cannot serve")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--peers", "wget"], 2, "there is no peer 'wget'"),
        (["--json", "--markdown"], 2, "exclude each other"),
        (["-o", "/none/bench.png"], 4, "there is no directory"),
        (["-o", "bench.docx"], 2, "ends in none of"),
        (["--case", "all"], 2, "--case"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    found, said, error = run(tmp_path, *arguments)
    assert (found, said) == (code, "")
    assert text in error


def test_the_picture_has_a_panel_per_case(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ckptd.bench import machine, plot

    figures = {"wall_s": Series((1.0, 2.0))}
    rows = Row("ckptd", figures), Row("curl", figures)
    outcomes = [Outcome(name, "", "wall_s", rows) for name in ("plain", "tls", "small")]
    plot.draw(tmp_path / "bench.svg", "Fetching", machine.describe(tmp_path, []), outcomes)
    assert (tmp_path / "bench.svg").read_text().count('id="axes_') == 3


def test_the_daemons_settings_are_those_of_the_environment_but_for_its_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(os.environ):
        if name.startswith("CKPTD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CKPTD_SOCKET", "/theirs")
    monkeypatch.setenv("CKPTD_STREAMS", "3")
    assert node.settings() == {"CKPTD_STREAMS": "3"}
