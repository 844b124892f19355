"""All-gather among ranks: who comes late, who asks again, and what is kept for whom."""

from __future__ import annotations

import anyio
import pytest

from ckptd_daemon.save.gather import Exchanges, Volume
from ckptd_proto import errors

SOON_S = 0.01
LONG_S = 30.0


async def test_who_has_waited_long_enough_leaves_nothing_behind() -> None:
    volume = Volume()
    exchanges = Exchanges(2, volume)
    with pytest.raises(errors.DeadlineExceeded, match="ranks 1 of 2 did not come to 'one'"):
        await exchanges.gather("one", 0, b"plan", timeout_s=SOON_S)
    assert (len(exchanges), volume.bytes) == (0, 0)


async def test_who_comes_late_does_not_go_on_with_one_that_has_left() -> None:
    exchanges = Exchanges(2, Volume())
    with pytest.raises(errors.DeadlineExceeded):
        await exchanges.gather("one", 0, b"plan", timeout_s=SOON_S)
    with pytest.raises(errors.DeadlineExceeded, match="ranks 0 of 2"):
        await exchanges.gather("one", 1, b"late", timeout_s=SOON_S)


async def test_a_rank_that_asks_again_is_still_there_when_its_first_call_has_run_out() -> None:
    exchanges = Exchanges(2, Volume())
    answers: list[list[bytes]] = []

    async def ask(rank: int, timeout_s: float) -> None:
        answers.append(await exchanges.gather("one", rank, bytes([rank]), timeout_s=timeout_s))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, 0, LONG_S)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(errors.DeadlineExceeded):  # the connection broke, and nobody noticed
            await ask(0, SOON_S)
        await ask(1, LONG_S)
    assert answers == [[b"\0", b"\1"]] * 2


async def test_a_job_that_ends_while_ranks_wait_gives_its_bytes_back_once() -> None:
    volume = Volume()
    exchanges = Exchanges(2, volume)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_close, exchanges)
        with pytest.raises(errors.DeadlineExceeded):
            await exchanges.gather("one", 0, b"plan", timeout_s=SOON_S)
    assert volume.bytes == 0


async def _close(exchanges: Exchanges) -> None:
    exchanges.close()
