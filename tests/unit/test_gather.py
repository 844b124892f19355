"""All-gather among ranks: who comes late, who asks again, and what is kept for whom."""

from __future__ import annotations

import anyio
import pytest

from ckptd_daemon.save.gather import Exchanges, Volume
from ckptd_proto import errors

SOON_S = 0.01
LONG_S = 30.0


async def miss(exchanges: Exchanges, name: str, rank: int) -> None:
    with pytest.raises(errors.DeadlineExceeded, match=f"did not come to '{name}'"):
        await exchanges.gather(name, rank, bytes([rank]), timeout_s=SOON_S)


async def meet(exchanges: Exchanges, name: str, *ranks: int) -> None:
    """Have them come, and get everybody's payload."""

    async def come(rank: int) -> None:
        found = await exchanges.gather(name, rank, bytes([rank]), timeout_s=LONG_S)
        assert found == [b"\0", b"\1"]

    async with anyio.create_task_group() as tasks:
        for rank in ranks:
            tasks.start_soon(come, rank)


async def test_of_rounds_that_some_missed_nothing_is_kept_once_all_have_met_again() -> None:
    volume = Volume()
    exchanges = Exchanges(2, volume)
    for number in range(10):
        await miss(exchanges, f"missed {number}", 0)
    await meet(exchanges, "met", 0, 1)
    assert (len(exchanges), volume.bytes) == (1, 2)


async def test_who_comes_late_hears_at_once_what_was_said() -> None:
    exchanges = Exchanges(2, Volume())
    await miss(exchanges, "one", 0)
    await meet(exchanges, "one", 1)


async def test_a_late_one_does_not_end_the_round_in_which_the_other_waits_by_then() -> None:
    exchanges = Exchanges(2, Volume())
    await miss(exchanges, "one", 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(meet, exchanges, "two", 0)
        await anyio.wait_all_tasks_blocked()
        await meet(exchanges, "one", 1)
        await meet(exchanges, "two", 1)


async def test_who_asks_again_gets_the_same_answer_until_all_have_met_once_more() -> None:
    exchanges = Exchanges(2, Volume())
    await meet(exchanges, "one", 0, 1)
    await meet(exchanges, "one", 1)
    await meet(exchanges, "two", 0, 1)
    await miss(exchanges, "one", 1)


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
