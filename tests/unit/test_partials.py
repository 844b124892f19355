"""A chunk counts only if it is what it is known to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import DamagedError, Partial

HEADER = Header("1d", "http://host/model", 'etag "v1"', "model", 250, 100, is_resumable=True)


def test_a_chunk_with_another_checksum_than_the_known_one_does_not_land(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "p", HEADER)
    partial.open()
    partial.expected = {1: 7}
    partial.record(0, 5, 100)
    with pytest.raises(DamagedError, match="chunk 1"):
        partial.record(1, 8, 100)
    assert (partial.landed, partial.landed_bytes, partial.missing()) == ({0: 5}, 100, [1, 2])
    partial.record(1, 7, 100)
    assert partial.missing() == [2]
    partial.close()
    again = Partial(tmp_path / "p", HEADER)
    assert again.open() == {0: 5, 1: 7}
    again.close()
