"""Promise: answers in memory keep to their budget, and each of them gets its turn."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import UpstreamUnavailable
from node.service.buffers import FREE_BYTES, Room, Share

WAIT_S = 10.0


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_small_answers_do_not_count() -> None:
    share = Room(10).share()
    assert share.more(FREE_BYTES) == 0
    assert share.more(7) == 7
    share.more(-1000)
    assert (share.held_bytes, share.more(5)) == (FREE_BYTES - 993, 0)


async def test_one_waits_for_room_and_gets_it() -> None:
    room = Room(100)
    first, second, third = room.share(), room.share(), room.share()
    await first.take(60)
    await second.take(40)
    waiting = asyncio.create_task(second.take(10))
    late = asyncio.create_task(third.take(1))
    await settle()
    assert not waiting.done()
    assert not late.done()
    await first.take(500)  # the oldest goes on whatever it takes: so somebody gets done
    first.close()
    first.close()
    await asyncio.wait_for(asyncio.gather(waiting, late), WAIT_S)
    assert room.taken_bytes == 51
    second.close()
    third.close()
    assert room.taken_bytes == 0


async def test_a_wait_ends() -> None:
    room = Room(100, wait_s=0.01)
    first, second = room.share(), room.share()
    await first.take(100)
    with pytest.raises(UpstreamUnavailable) as refused:
        await second.take(1)
    assert refused.value.retry_after_s
    second.close()
    assert room.taken_bytes == 100
    first.close()
    await asyncio.wait_for(second.take(100), WAIT_S)


async def test_who_leaves_while_waiting_takes_nothing() -> None:
    room = Room(100)
    first, second, third = room.share(), room.share(), room.share()
    await first.take(100)
    leaving = asyncio.create_task(second.take(50))
    staying = asyncio.create_task(third.take(60))
    await settle()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    second.close()
    first.close()
    await asyncio.wait_for(staying, WAIT_S)
    assert room.taken_bytes == 60
    third.close()
    assert room.taken_bytes == 0


async def test_many_at_once_all_end_within_the_budget_and_one_answer() -> None:
    room = Room(1000)
    answer, piece, peak = 900, 100, 0

    async def read(share: Share) -> None:
        nonlocal peak
        for _ in range(answer // piece):
            await share.take(piece)
            peak = max(peak, room.taken_bytes)
            await asyncio.sleep(0)
        share.close()

    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(read(room.share()) for _ in range(50)))
    assert 1000 <= peak <= 1000 + answer
    assert room.taken_bytes == 0
