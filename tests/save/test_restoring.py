"""What several ranks of a node load."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd.saving.restoring import wanted_by_several
from fakes import ranks
from fakes.daemon import Daemon

SHARING = Path(__file__).parent / "programs" / "sharing.py"
SIZE = 64 << 20


def test_what_two_ranks_want_is_read_from_the_disk_once(daemon: Daemon, tmp_path: Path) -> None:
    started = ranks.start(SHARING, tmp_path, SIZE, ranks=2, env=daemon.env)
    said = [text.splitlines()[-1].split() for text in ranks.outputs(started)]
    assert [words[0] for words in said] == ["True", "True"]
    read_bytes = sum(int(words[1]) for words in said)
    if read_bytes == 0:
        pytest.skip("needs a disk below the temporary directory")
    assert SIZE <= read_bytes < 1.25 * SIZE


def test_only_chunks_that_more_than_one_rank_wants_are_shared() -> None:
    wanted = [{"a": "f", "b": "1"}, {"a": "c"}, {"a": "10", "b": "2"}, {"c": "8"}, {"c": "8"}]
    assert wanted_by_several(wanted) == {"a": 0xC, "b": 0, "c": 8}
    assert wanted_by_several(wanted[:1]) == {"a": 0, "b": 0}
