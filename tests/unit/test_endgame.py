"""At the end those get help whose connection is slow, and nobody else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ckptd_daemon.transfer.endgame import LOOK_S, LOOKS, EndGame, Help

MB = 1 << 20


@dataclass(eq=False)
class Piece:
    reached: int
    end: int
    rate: float = 0.0

    @property
    def promised(self) -> int:
        return min(self.reached + 4096, self.end)


def looked(pieces: list[Piece], size_bytes: int = 1 << 30, looks: int = LOOKS + 1) -> EndGame:
    game = EndGame(size_bytes)
    for n in range(looks):
        game.look(n * LOOK_S, pieces)
        if n + 1 < looks:
            for piece in pieces:
                piece.reached = min(piece.end, piece.reached + int(piece.rate * LOOK_S))
    return game


def test_a_steady_stream_that_would_end_last_is_shared_by_two() -> None:
    pieces = [Piece(0, 64 * MB, 2 * MB), Piece(0, 16 * MB, 2 * MB)]
    help_ = looked(pieces).help(pieces)
    assert help_ is not None
    assert help_.which == 0
    assert help_.keep_bytes is not None
    assert abs(help_.keep_bytes - 31 * MB) < 2 * MB


def test_a_stream_that_dribbles_keeps_next_to_nothing() -> None:
    pieces = [Piece(0, 16 * MB, 5000), Piece(0, 400 * MB, 100 * MB)]
    help_ = looked(pieces).help(pieces)
    assert help_ is not None
    assert help_.which == 0
    assert help_.keep_bytes is not None
    assert help_.keep_bytes < 4096


def test_a_short_rest_is_raced_once_the_rest_is_known_to_lag() -> None:
    pieces = [Piece(0, MB // 2, 5000), Piece(0, 400 * MB, 100 * MB)]
    assert looked(pieces).help(pieces) == Help(0, None)


@pytest.mark.parametrize("rest", [MB // 2, 2 * MB], ids=["raced", "split"])
def test_one_that_is_alone_and_slower_than_those_that_ended_gets_help(rest: int) -> None:
    pieces = [Piece(0, rest, 5000)]
    game = looked(pieces)
    assert game.help(pieces) is None  # all are like that, as far as is known
    game.learn(100 * MB)
    assert game.help(pieces) is not None


def test_what_is_soon_here_is_left_alone() -> None:
    pieces = [Piece(0, 128 * MB, 100 * MB)]
    assert looked(pieces).help(pieces) is None


def test_when_everything_stands_still_nothing_is_asked_twice() -> None:
    pieces = [Piece(3 * MB, 16 * MB), Piece(5 * MB, 16 * MB)]
    assert looked(pieces).help(pieces) is None


def test_the_last_one_that_stands_still_is_helped() -> None:
    pieces = [Piece(3 * MB, 16 * MB)]
    assert looked(pieces).help(pieces) == Help(0, 0)


def test_nobody_is_judged_before_it_was_looked_at_for_a_while() -> None:
    pieces = [Piece(0, 16 * MB, 5000), Piece(0, 400 * MB, 100 * MB)]
    assert looked(pieces, looks=LOOKS).help(pieces) is None


def test_races_cost_no_more_than_a_small_part_of_the_object() -> None:
    size_bytes = 40 * MB
    pieces = [Piece(0, MB - 8192, 5000), Piece(0, 400 * MB, 100 * MB)]
    game = looked(pieces, size_bytes)
    raced = 0
    while (help_ := game.help(pieces)) is not None:
        assert help_.keep_bytes is None
        raced += pieces[0].end - pieces[0].reached
    assert 0 < raced <= size_bytes // 20
