"""What a server does again and again beside serving, each at its own pace; a failure is logged and tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guard.errors import LetheError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """`work` blocks, and is done every `seconds` and once more at the end."""

    name: str
    seconds: float
    work: Callable[[], Any]


async def keep(*chores: Chore) -> None:
    """Until cancelled."""
    await asyncio.gather(*map(_repeat, chores))


async def _repeat(chore: Chore) -> None:
    try:
        while True:
            await asyncio.to_thread(_done, chore)
            await asyncio.sleep(chore.seconds)
    finally:
        _done(chore)


def _done(chore: Chore) -> None:
    try:
        chore.work()
    except LetheError as error:
        logger.error("%s: %s", chore.name, error.message)
    except Exception:
        logger.exception("%s failed; it will be tried again", chore.name)
