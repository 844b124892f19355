"""Ways take turns at the same thing, round after round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckptd.bench.figures import Reading, Row, order, row
from ckptd.bench.jobs import WrongError
from ckptd.bench.processes import FailedError


def take_turns(
    case: str,
    names: Sequence[str],
    repeats: int,
    play: Callable[[str, int], Reading],
    say: Callable[[str], None],
) -> tuple[Row, ...]:
    """Have every way *play* in turn, over the rounds after the first, which does not count.

    A way that fails, or is wrong, takes no further part, and its row says so.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in names}
    out: dict[str, Row] = {}
    for turn in range(repeats + 1):
        for name in order(names, turn):
            if name in out:
                continue
            say(f"{case}: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
            try:
                reading = play(name, turn)
            except FailedError as error:
                out[name] = Row(name, {}, str(error), is_wrong=isinstance(error, WrongError))
                continue
            if turn:
                readings[name].append(reading)
    return tuple(out.get(name) or row(name, readings[name]) for name in names)
