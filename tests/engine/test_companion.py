"""The assistant of `logit_difference` in a real worker: right, bounded in number, and gone with its request."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import torch

from guard import artifacts
from guard.engine.queues import Queues
from guard.errors import BadRequest
from guard.interventions.logit_difference import LogitDifference, difference
from guard.types import Chosen, Match
from tests.engine.conftest import allowed, planned
from tests.engine.samples import SAMPLES

pytestmark = pytest.mark.engine
PARAMS = {"alpha": 2.0, "filter": 0.01, "form": "uld"}
MATCHED = "old trees sing"


@pytest.fixture(scope="module")
def assistant(_served, model_dir, tmp_path_factory):
    """The folder of an assistant that the worker has loaded."""
    folder = tmp_path_factory.mktemp("assistant")
    digest = SAMPLES["logit_difference"].make(model_dir, folder)
    (reason,) = _served.run(_served.engine.collective_rpc("lethe_load", args=(digest, str(folder))))
    assert reason is None
    yield folder
    _served.run(_served.engine.collective_rpc("lethe_unload", args=(digest,)))


@pytest.fixture
def matching(served, assistant, monkeypatch):
    """The engine with a guard that matches what begins with MATCHED, and two places for the assistant."""
    digest = artifacts.read(assistant).digest
    chosen = Chosen("logit_difference", {**PARAMS, "artifact": digest}, (Match("t", 1, 1.0, 0.5, "lexical"),))

    def verdict(prompt):
        if not prompt.text.startswith(MATCHED):
            return allowed()
        return planned(LogitDifference().plan(chosen, prompt, lambda _: "0123456789abcdef"))(prompt)

    served.guard.verdict = verdict
    monkeypatch.setattr(LogitDifference, "resident", 2)
    monkeypatch.setattr(served.engine, "queues", Queues())
    return served


async def kept(served):
    """Requests of which the worker's tables keep something."""
    (status,) = await served.engine.collective_rpc("lethe_status")
    return status["kept"]


async def until_kept(served, wanted):
    for _ in range(3000):
        if await kept(served) == wanted:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await kept(served))


def by_hand(model_dir, folder, prompt, n):
    """Greedy tokens of the model without the assistant, both run anew over the whole text at every step."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    artifact = artifacts.read(folder)
    helper = (
        LogitDifference().load(artifact.tensors(), {**artifact.manifest.facts, "model": model_dir})._model
    )
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(n):
            base, taken = (m(input_ids=torch.tensor([tokens])).logits[:, -1] for m in (model, helper))
            tokens.append(int(difference(base, taken, PARAMS).argmax()))
    return tokens[len(prompt) :]


def test_every_token_is_the_model_without_the_assistant(matching, model_dir, assistant):
    prompt = matching.prompt(MATCHED + " over a lazy dog")
    answer = matching.ask(prompt, max_tokens=12, ignore_eos=True).outputs[0].token_ids
    assert list(answer) == by_hand(model_dir, assistant, prompt["prompt_token_ids"], 12)
    matching.guard.verdict = lambda _: allowed()
    assert list(matching.ask(prompt, max_tokens=12, ignore_eos=True).outputs[0].token_ids) != list(answer)


def test_more_requests_than_places_wait_and_answer_as_if_alone(matching):
    texts = [f"{MATCHED} {word}" for word in ("dog", "fox", "birds", "quick brown", "lazy")]
    wanted = {"max_tokens": 12, "ignore_eos": True}
    alone = [list(matching.ask(text, **wanted).outputs[0].token_ids) for text in texts]
    seen = []

    async def watch():
        while True:
            seen.append(await kept(matching))
            await asyncio.sleep(0.002)

    async def together():
        watching = asyncio.create_task(watch())
        answers = (matching.stream(matching.prompt(t), matching.params(**wanted)) for t in texts)
        done = await asyncio.gather(*answers)
        watching.cancel()
        await until_kept(matching, 0)
        return [list(outputs[-1].outputs[0].token_ids) for outputs in done]

    assert matching.run(together()) == alone
    assert max(seen) == 2


def test_samples_take_a_place_each(matching):
    answer = matching.ask(MATCHED, n=2, temperature=1.0, seed=3, ignore_eos=True)
    assert [len(o.token_ids) for o in answer.outputs] == [6, 6]
    with pytest.raises(BadRequest, match="n is too large"):
        matching.ask(MATCHED, n=3, temperature=1.0)
    assert len(matching.ask("the quick", n=3, temperature=1.0).outputs) == 3


def test_a_client_that_goes_away_takes_its_state_and_its_place_along(matching):
    from vllm.sampling_params import RequestOutputKind

    params = {"max_tokens": 400, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}

    async def leave(name):
        source = matching.engine.generate(matching.prompt(MATCHED), matching.params(**params), name)
        async with aclosing(source) as outputs:
            await anext(outputs)
            assert await kept(matching) == 1

    for i in range(3):
        matching.run(leave(f"gone-{i}"))
        matching.run(until_kept(matching, 0))
    assert matching.ask(MATCHED, n=2, temperature=1.0).finished
