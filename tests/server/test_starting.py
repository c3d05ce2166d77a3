"""The engine starts beside the guard; neither outlives the other, and nothing is served before the proof."""

import asyncio
import multiprocessing
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from guard.engine import launch, serving
from guard.errors import StartupError
from server import launcher

TIMEOUT = 20


class Engine:
    def __init__(self) -> None:
        self.ended = None
        self.reset = False

    async def reset_mm_cache(self) -> None:
        self.reset = True

    def shutdown(self, timeout) -> None:
        self.ended = timeout


@pytest.fixture
def connecting(monkeypatch):
    """Put a function in the place of what starts vLLM's processes and waits for them."""

    def use(connect):
        config = SimpleNamespace(shutdown_timeout=7)
        monkeypatch.setattr(serving, "_configured", lambda args, client: (config, connect))

    return use


async def failed(before) -> None:
    """An engine starts, and what is done beside it fails."""

    async def block():
        async with asyncio.timeout(TIMEOUT), serving.starting_engine(None):
            await asyncio.to_thread(before)
            raise StartupError("The store cannot be opened.")

    with pytest.raises(StartupError, match="store"):
        await block()


async def test_the_engine_starts_beside_what_the_block_does(connecting):
    prepared, engine = threading.Event(), Engine()
    connecting(lambda: prepared.wait(TIMEOUT) and engine)
    async with asyncio.timeout(TIMEOUT), serving.starting_engine(None) as started:
        prepared.set()
        assert await started() is engine
        assert (engine.reset, engine.ended) == (True, None)
    assert engine.ended == 7


async def test_a_block_that_fails_ends_the_processes_that_start(connecting):
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    running = threading.Event()

    def connect():
        process.start()
        running.set()
        process.join()
        raise RuntimeError("the engine core ended")

    connecting(connect)
    await failed(running.wait)
    assert process.exitcode is not None


async def test_an_engine_that_came_too_late_is_shut_down(connecting):
    engine, failing = Engine(), threading.Event()
    connecting(lambda: failing.wait(TIMEOUT) and engine)
    await failed(failing.set)
    assert engine.ended == 7


async def test_an_engine_that_does_not_start_is_one_sentence(connecting):
    connecting(lambda: (_ for _ in ()).throw(ValueError("No room.\nand more")))
    async with serving.starting_engine(None) as started:
        with pytest.raises(StartupError, match=r"^The engine did not start: No room\.$"):
            await started()


async def test_without_the_proof_nothing_is_served(monkeypatch):
    engine, done = Engine(), []

    @asynccontextmanager
    async def starting(args, client):
        yield lambda: asyncio.sleep(0, engine)
        done.append("engine ended")

    @asynccontextmanager
    async def services_of(settings, *, number):
        try:
            yield SimpleNamespace(guard=object())
        finally:
            done.append("services closed")

    async def prove(found):
        assert found is engine
        raise StartupError("An edit of the canary request did not change what the model says.")

    monkeypatch.setattr(serving, "starting_engine", starting)
    monkeypatch.setattr(launcher, "services_of", services_of)
    monkeypatch.setattr(launch, "prove", prove)
    for name in ("application", "serve_until_stopped"):
        monkeypatch.setattr(serving, name, lambda *_: pytest.fail("served without a proof"))
    settings = SimpleNamespace(server=SimpleNamespace(admin_port=None, admin_host="127.0.0.1"))
    with pytest.raises(StartupError, match="canary"):
        await launcher._serve(settings, None, None, seed_demo=False)
    assert done == ["services closed"] and not hasattr(engine, "guard")
