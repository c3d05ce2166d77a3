"""Stopping: nobody comes in any more, and those inside get their time."""

import asyncio
import time

import pytest

from guard.errors import GuardUnavailable
from server.door import Door


async def test_a_closed_door_lets_nobody_in_and_waits_for_those_inside():
    door, done = Door(), []

    async def request(seconds):
        with door.passing():
            await asyncio.sleep(seconds)
            done.append(seconds)

    requests = [asyncio.create_task(request(seconds)) for seconds in (0.05, 0.1)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(door.close(10))
    await asyncio.sleep(0)
    with pytest.raises(GuardUnavailable, match="stopping"), door.passing():
        pass
    await closing
    assert done == [0.05, 0.1]
    await asyncio.gather(*requests)


async def test_it_waits_no_longer_than_it_was_told():
    door = Door()
    with door.passing():
        began = time.monotonic()
        await door.close(0.05)
        await door.close(0)
        assert time.monotonic() - began < 5 and door.closed


async def test_a_request_that_failed_is_not_waited_for():
    door = Door()
    with pytest.raises(ValueError, match="broken"), door.passing():
        raise ValueError("broken")
    async with asyncio.timeout(5):
        await door.close(60)
