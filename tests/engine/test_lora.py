"""The engine holds an adapter before a request needs it, and as long as one does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.engine.lora import Adapters
from guard.errors import ArtifactError, GuardUnavailable
from guard.types import Edit


class Engine:
    """Holds adapters as vLLM does, and never more than `most` are seen."""

    def __init__(self, refuses: tuple[str, ...] = ()) -> None:
        self.held: set[int] = set()
        self.most = self.loads = 0
        self.refuses = refuses

    async def add_lora(self, request: Any) -> bool:
        await asyncio.sleep(0)
        if request.lora_path in self.refuses:
            raise RuntimeError("LoRA rank 64 is greater than max_lora_rank 16.")
        self.held.add(request.lora_int_id)
        self.loads += 1
        self.most = max(self.most, len(self.held))
        return True

    async def remove_lora(self, number: int) -> bool:
        await asyncio.sleep(0)
        self.held.remove(number)
        return True


def artifact(i: int) -> Any:
    return SimpleNamespace(digest=f"{i:08x}" * 8, folder=Path(f"/artifacts/{i}"))


def edit(i: int) -> tuple[Edit, ...]:
    return (Edit("adapter", "lora_adapter", (0,), "0" * 16, {}, onward=True, table=artifact(i).digest),)


async def loaded(engine: Engine, count: int, bound: int) -> Adapters:
    adapters = Adapters(engine, bound)
    for i in range(count):
        await adapters.load(artifact(i))
    return adapters


def test_a_request_gets_its_adapter_and_one_without_gets_none():
    async def go() -> None:
        adapters = await loaded(Engine(), 2, 4)
        async with adapters.option(edit(1)) as option:
            assert option["lora_request"].lora_path == "/artifacts/1"
        async with adapters.option(()) as option:
            assert option == {}

    asyncio.run(go())


def test_adapters_in_use_stay_and_the_longest_unused_goes():
    async def go() -> None:
        engine = Engine()
        adapters = await loaded(engine, 4, 2)
        assert engine.most == 2 and engine.loads == 4
        async with adapters.option(edit(2)), adapters.option(edit(3)):
            waiting = asyncio.create_task(adapters.option(edit(0)).__aenter__())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            async with adapters.option(edit(3)):  # what is there is not held up by who waits
                pass
        option = await asyncio.wait_for(waiting, 1)
        assert option["lora_request"].lora_int_id in engine.held
        assert engine.most == 2

    asyncio.run(go())


def test_many_requests_at_once_load_an_adapter_once_and_never_too_many():
    async def go() -> None:
        engine = Engine()
        adapters = await loaded(engine, 8, 3)
        before = engine.loads

        async def use(i: int) -> None:
            async with adapters.option(edit(i)) as option:
                for _ in range(3):
                    await asyncio.sleep(0)
                    assert option["lora_request"].lora_int_id in engine.held

        await asyncio.gather(*(use(7) for _ in range(20)))
        assert engine.loads == before
        await asyncio.gather(*(use(i % 8) for i in range(200)))
        assert engine.most == 3

    asyncio.run(go())


def test_unloading_waits_for_requests_and_refuses_new_ones():
    async def go() -> None:
        engine = Engine()
        adapters = await loaded(engine, 2, 4)
        async with adapters.option(edit(0)) as option:
            leaving = asyncio.create_task(adapters.unload(artifact(0).digest))
            await asyncio.sleep(0.01)
            assert option["lora_request"].lora_int_id in engine.held
            with pytest.raises(GuardUnavailable) as failed:
                async with adapters.option(edit(0)):
                    pass
            assert failed.value.reason == "adapter"
        await asyncio.wait_for(leaving, 1)
        assert len(engine.held) == 1

    asyncio.run(go())


def test_what_the_engine_refuses_is_not_known_afterwards():
    async def go() -> None:
        adapters = Adapters(Engine(refuses=("/artifacts/0",)), 4)
        with pytest.raises(ArtifactError, match="cannot take"):
            await adapters.load(artifact(0))
        with pytest.raises(GuardUnavailable):
            async with adapters.option(edit(0)):
                pass

    asyncio.run(go())


def test_two_adapters_never_share_a_number():
    async def go() -> None:
        adapters = await loaded(Engine(), 1, 4)
        other = SimpleNamespace(digest="00000000" + "ff" * 28, folder=Path("/artifacts/other"))
        with pytest.raises(ArtifactError, match="number"):
            await adapters.load(other)
        async with adapters.option(edit(0)):
            pass

    asyncio.run(go())


def test_a_server_without_slots_takes_none():
    with pytest.raises(ArtifactError, match=r"adapters\.slots"):
        asyncio.run(Adapters(Engine(), 0).load(artifact(0)))
