"""What is begun before its verdict: the engine is asked early, nothing leaves early, and what is dropped is gone."""

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.context import RequestContext, enter, leave
from guard.engine.client import GuardedAsyncLLM
from guard.engine.rewriting import Salts
from guard.errors import GuardUnavailable
from guard.types import Insertion, Plan, Reply
from tests.engine.conftest import Script, allowed, planned

TEXT = "the quick brown fox"
TOKENS = 3
EDIT = planned(Plan(insertions=(Insertion(0, "small birds "),)))
REPLY = planned(Plan(reply=Reply("natural", "No idea.")), "refuse")
ALLOW = lambda prompt: allowed()  # noqa: E731


class Late(Script):
    """A guard whose verdict comes when the test lets it, and then is what `verdict` says."""

    def __init__(self, verdict=ALLOW):
        super().__init__(verdict, early=True)
        self.release = asyncio.Event()

    async def admit(self, prompt, context):
        await self.release.wait()
        return await super().admit(prompt, context)


class Engine(GuardedAsyncLLM):
    """The guarded client over an engine that notes which runs it was given and which it was told to forget."""

    def __init__(self, tokenizer, guard, error=None):
        self.salts, self.guard, self.error = Salts(), guard, error
        self.model_config = SimpleNamespace(max_model_len=512)
        self.reads = tokenizer
        self.log, self.runs = [], {}
        self.asked = asyncio.Event()

    def shutdown(self, timeout=None):
        pass

    def get_tokenizer(self):
        return self.reads

    async def _run(self, prompt, params, request_id, options):
        self.log.append(("asked", request_id))
        self.runs[request_id] = prompt
        self.asked.set()
        try:
            await asyncio.sleep(0)
            if self.error:
                raise self.error
            for i in range(TOKENS):
                reason = "length" if i == TOKENS - 1 else None
                choice = CompletionOutput(0, "ab"[i % 2], [5 + i], None, None, finish_reason=reason)
                ids = prompt["prompt_token_ids"]
                yield RequestOutput(request_id, "", ids, None, [choice], finished=reason is not None)
            self.log.append(("done", request_id))
        except (asyncio.CancelledError, GeneratorExit):
            self.log.append(("forgotten", request_id))
            raise

    def ask(self, seen=None, context=None, params=None, **prompt):
        """A task that reads one answer into `seen`."""
        ids = self.reads.encode(TEXT, add_special_tokens=False)
        params = params or SamplingParams(max_tokens=TOKENS, output_kind=RequestOutputKind.DELTA)

        async def read():
            token = enter(context) if context else None
            found = [] if seen is None else seen
            try:
                async for output in self.generate(
                    {"type": "token", "prompt_token_ids": ids, **prompt}, params, "r1"
                ):
                    found.append(output)
            finally:
                if token:
                    leave(token)
            return found

        return asyncio.create_task(read())


@pytest.fixture
def engine(tokenizer):
    return functools.partial(Engine, tokenizer)


def context(**fields):
    return RequestContext("d1", "/v1/completions", 0.0, **fields)


async def begun(made):
    """Wait until the engine was asked, and long enough for all that it says to be there."""
    async with asyncio.timeout(5):
        await made.asked.wait()
    await asyncio.sleep(0.02)


async def test_the_engine_is_asked_before_the_verdict_and_nothing_leaves_before_it(engine):
    made, seen = engine(Late()), []
    task = made.ask(seen)
    await begun(made)
    assert not made.guard.judged and made.log[0] == ("asked", "r1") and seen == []
    made.guard.release.set()
    await task
    assert made.log == [("asked", "r1"), ("done", "r1")]
    assert [t for output in seen for t in output.outputs[0].token_ids] == [5, 6, 7]
    assert seen[-1].finished and {output.request_id for output in seen} == {"r1"}


@pytest.mark.parametrize("verdict", [EDIT, REPLY], ids=["edited", "replied"])
async def test_a_match_is_forgotten_before_anything_else_happens(engine, verdict):
    made, seen = engine(Late(verdict)), []
    task = made.ask(seen, told := context())
    await begun(made)
    made.guard.release.set()
    await task
    assert made.log[:2] == [("asked", "r1"), ("forgotten", "r1")]
    again = [request_id for event, request_id in made.log[2:] if event == "asked"]
    assert len(again) == (verdict is EDIT) and "r1" not in again
    assert {output.request_id for output in seen} == {"r1"} and told.matched
    if again:
        first, second = made.runs["r1"], made.runs[again[0]]
        assert "cache_salt" not in first and second["cache_salt"].startswith("@")
        assert len(second["prompt_token_ids"]) > len(first["prompt_token_ids"])


async def test_a_run_that_was_given_up_counts_nowhere(engine):
    counts = []
    for early in (True, False):
        made = engine(Late(EDIT))
        made.guard.early = early
        spent = []
        task = made.ask(context=(told := context(spend=spent.append)))
        if early:
            await begun(made)
        made.guard.release.set()
        await task
        assert (("forgotten", "r1") in made.log) is early
        counts.append((spent, told.usage, told.edits, told.applied))
    assert counts[0] == counts[1]
    ids = len(made.runs["r1-edited"]["prompt_token_ids"]) - 1
    assert counts[0][1].output_tokens == TOKENS and 0 < counts[0][1].input_tokens < ids


async def test_a_verdict_that_fails_forgets_what_was_begun(engine):
    def broken(prompt):
        raise GuardUnavailable("late", reason="timeout")

    made, seen = engine(Late(broken)), []
    task = made.ask(seen, told := context())
    await begun(made)
    made.guard.release.set()
    with pytest.raises(GuardUnavailable):
        await task
    assert made.log == [("asked", "r1"), ("forgotten", "r1")]
    assert seen == [] and told.failure.reason == "timeout"


@pytest.mark.parametrize("when", ["during the grace", "while it is judged"])
async def test_a_client_that_leaves_before_the_verdict_leaves_nothing_behind(engine, when):
    made = engine(Late())
    task = made.ask()
    if when == "while it is judged":
        await begun(made)
    else:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.02)
    assert made.log == ([("asked", "r1"), ("forgotten", "r1")] if made.runs else [])
    assert bool(made.runs) is (when == "while it is judged")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_leaves_after_the_verdict_leaves_nothing_behind(engine):
    made = engine(Late())
    made.guard.release.set()
    ids = made.reads.encode(TEXT, add_special_tokens=False)
    params = SamplingParams(max_tokens=TOKENS, output_kind=RequestOutputKind.DELTA)
    stream = made.generate({"type": "token", "prompt_token_ids": ids}, params, "r1")
    await anext(stream)
    await stream.aclose()
    assert made.log == [("asked", "r1"), ("forgotten", "r1")]


@pytest.mark.parametrize("verdict", [ALLOW, EDIT], ids=["allowed", "matched"])
async def test_what_fails_in_the_engine_is_told_only_to_whom_it_would_have_answered(engine, verdict):
    made = engine(Late(verdict), ValueError("no"))
    task = made.ask()
    await begun(made)
    assert not task.done()
    made.error = None  # the run that fails is the one that was begun
    made.guard.release.set()
    if verdict is ALLOW:
        with pytest.raises(ValueError, match="no"):
            await task
    else:
        assert (await task)[-1].finished


@pytest.mark.parametrize("verdict", [ALLOW, EDIT], ids=["allowed", "matched"])
async def test_a_verdict_within_the_grace_finds_nothing_begun(engine, verdict):
    made = engine(Late(verdict))
    task = made.ask()
    await asyncio.sleep(0.0005)
    made.guard.release.set()
    await task
    await asyncio.sleep(0.01)
    assert [event for event, _ in made.log] == ["asked", "done"]


@pytest.mark.parametrize(
    ("params", "prompt"),
    [
        ({"output_kind": RequestOutputKind.CUMULATIVE, "detokenize": False, "max_tokens": 1}, {}),
        ({"extra_args": {"kv_transfer_params": {"do_remote_decode": True}}}, {}),
        ({}, {"type": "multimodal"}),
    ],
    ids=["beam", "transfer", "multimodal"],
)
async def test_what_cannot_be_given_up_waits_for_its_verdict(engine, params, prompt):
    made = engine(Late())
    task = made.ask(params=SamplingParams(**params), **prompt)
    await asyncio.sleep(0.02)
    assert made.log == []
    made.guard.release.set()
    await task
    assert made.log[0] == ("asked", "r1")


async def test_the_guard_says_what_may_begin(engine):
    made = engine(Late())
    made.guard.early = False
    task = made.ask()
    await asyncio.sleep(0.02)
    assert made.log == []
    made.guard.release.set()
    await task
    assert made.log == [("asked", "r1"), ("done", "r1")]
