"""What `ckptd fetch` says while it waits fits a line and explains itself."""

from __future__ import annotations

import pytest

from ckptd.cli.bar import LINE_S, NAME_MAX, Lines, short, told
from ckptd.values import Progress

GB = 10**9


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress("resolving", 0, None, 0, ""), "resolving"),
        (
            Progress("downloading", GB, 4 * GB, 16, "", "", 0.5 * GB, 6.0),
            "1.0 GB of 4.0 GB, 500.0 MB/s, 6 s left, 16 streams",
        ),
        (
            Progress(
                "downloading",
                GB,
                4 * GB,
                8,
                "held to 50 MB/s by max_bytes_per_s",
                "limit",
                5e7,
                60.0,
            ),
            "1.0 GB of 4.0 GB, 50.0 MB/s, 1 min 0 s left, held to 50 MB/s by max_bytes_per_s",
        ),
        (
            Progress("downloading", GB, 4 * GB, 16, "no more", "network", 0.5 * GB, 6.0),
            "1.0 GB of 4.0 GB, 500.0 MB/s, 6 s left, 16 streams",
        ),
        (
            Progress("downloading", GB, 4 * GB, 16, "the disk takes its time", "disk", 0.5 * GB),
            "1.0 GB of 4.0 GB, 500.0 MB/s, the disk takes its time",
        ),
        (
            Progress("retrying", GB, 4 * GB, 0, "the origin answers 429", "throttled"),
            "1.0 GB of 4.0 GB, retrying: the origin answers 429",
        ),
        (Progress("downloading", GB, None, 1, "", "", 1e6), "1.0 GB, 1.0 MB/s, 1 stream"),
        (Progress("verifying", 4 * GB, 4 * GB, 0, "", "hash"), "4.0 GB of 4.0 GB, verifying"),
    ],
)
def test_progress_in_words(progress: Progress, words: str) -> None:
    assert told(progress) == words


def test_a_log_gets_a_line_now_and_then_and_none_for_what_is_quick() -> None:
    now, said = [0.0], list[str]()
    lines = Lines("model", said.append, lambda: now[0])
    for second in range(26):
        now[0] = float(second)
        lines.show(Progress("verifying", 0, None, 0, ""))
    assert said == ["model: verifying"] * 2
    assert LINE_S == 10.0


def test_a_name_is_short_and_shows_no_secret() -> None:
    assert short("https://user:word@h/a/model.safetensors?sig=x#sha256=0") == "model.safetensors"
    assert len(short("https://h/" + "a" * 99)) <= NAME_MAX
