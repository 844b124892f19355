from __future__ import annotations

import json
from collections.abc import Callable
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

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def all_gather(self, payload: bytes) -> list[bytes]:
        return [payload, self._answer(payload)]

    def close(self) -> None:
        """Nothing is held."""


def says_the_daemon_is(instance: str) -> Callable[[bytes], bytes]:
    def answer(payload: bytes) -> bytes:
        heard = json.loads(payload)
        if "daemon" in heard["said"]:
            heard["said"]["daemon"] = instance
        return json.dumps(heard).encode()

    return answer


def join(daemon: Daemon, root: Path, *, other_says: str) -> Membership:
    connection = Connection.open(daemon.socket)
    return Membership.join(connection, Two(says_the_daemon_is(other_says)), root, "e", "r")


def instance_now(daemon: Daemon) -> str:
    return str(Connection.existing(daemon.socket).daemon.instance)


def test_ranks_of_two_daemons_are_refused_with_a_way_out(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(errors.Unimplemented, match=r'another daemon.*ranks="self"'):
        join(daemon, tmp_path, other_says="another node's")


def test_a_rank_that_has_not_met_the_restarted_daemon_is_not_taken_for_one_of_another_node(
    daemon: Daemon, tmp_path: Path
) -> None:
    Connection.open(daemon.socket)
    daemon.kill()
    daemon.start()
    join(daemon, tmp_path, other_says=instance_now(daemon)).leave()
