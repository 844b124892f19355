from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.link.connection import Connection
from ckptd.saving.membership import Membership
from fakes.daemon import Daemon


class Two:
    """A world of two in which the other rank says what the test lets it say."""

    rank = 0
    world_size = 2

    def __init__(self, **other_says: str) -> None:
        self._other_says = other_says

    def begin(self) -> None:
        """The other rank is always there."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        heard = json.loads(payload)
        said = {name: self._other_says.get(name, what) for name, what in heard["said"].items()}
        return [payload, json.dumps(heard | {"said": said}).encode()]

    def close(self) -> None:
        """Nothing is held."""


def join(running: Daemon, root: Path, **other_says: str) -> Membership:
    connection = Connection.open(running.socket)
    return Membership.join(connection, Two(**other_says), root, "e", "r")


def test_ranks_know_which_of_them_have_the_same_daemon(daemon: Daemon, tmp_path: Path) -> None:
    alike = join(daemon, tmp_path)
    assert (alike.daemons, alike.ranks_beside) == ([], [0, 1])
    alike.leave()
    apart = join(daemon, tmp_path, daemon="0123456789ab")
    assert (apart.daemons[1], apart.ranks_beside) == ("0123456789ab", [0])
    apart.leave()


def test_ranks_that_save_into_different_places_are_told(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"rank 1 saves into /elsewhere"):
        join(daemon, tmp_path, place="/elsewhere")


def test_a_daemon_is_the_same_after_its_restart(daemon: Daemon, tmp_path: Path) -> None:
    member = join(daemon, tmp_path, daemon="0123456789ab")
    before = member.daemons[0]
    daemon.kill()
    daemon.start()
    assert join(daemon, tmp_path, daemon="0123456789ab").daemons[0] == before
