"""Activation gates and scores on a real engine: what is observed is not changed, what fires is not given away, and what
is scored is what the edited model would say."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy

import pytest

from guard import artifacts
from guard.context import RequestContext
from guard.errors import BadRequest, GuardUnavailable
from guard.types import Admission, Decision, Plan, Reply, Watch
from tests.engine.conftest import WORDS, allowed, edited, likelihoods
from tests.engine.test_client import SHAPES, flat

pytestmark = pytest.mark.engine
SHORT = "the quick brown fox"
NEVER = {"window": 8, "rate": 2.0, "drift": 0.5, "cusum": 1e6}
ALWAYS = {"window": 8, "rate": 0.0, "drift": 0.5, "cusum": 1e6}
LATER = {"window": 1024, "rate": 2.0, "drift": 0.0, "cusum": 8.5}
"""Fires at the ninth hot token."""


@pytest.fixture(scope="module")
def gates(_served, model_dir, tmp_path_factory):
    """One artifact for each of the limits, in the workers; every token is hot. The broken one reads another width."""
    import torch

    generator = torch.Generator().manual_seed(1)
    made = {}
    for name, limits, width in (
        ("never", NEVER, 64), ("always", ALWAYS, 64), ("later", LATER, 64), ("broken", NEVER, 63)
    ):  # fmt: skip
        tensors = {
            "encoder": torch.randn(width, 5, generator=generator),
            "bias": torch.full((5,), 1e4),
            "threshold": torch.zeros(5),
            "decoder": torch.randn(5, width, generator=generator),
        }
        folder = tmp_path_factory.mktemp(name)
        facts = {"layers": [1], "normalisation": "none", "gate": limits}
        artifact = artifacts.write(
            folder, "sae_clamp", artifacts.weights_digest(model_dir), tensors=tensors, facts=facts
        )
        (reason,) = _served.run(
            _served.engine.collective_rpc("lethe_load", args=(artifact.digest, str(folder)))
        )
        assert reason is None
        made[name] = Watch("jane", "sae_clamp", 1, artifact.digest)
    return made


def watching(watch):
    return lambda prompt: Admission(Decision("allow", 1), Plan(watches=(watch,)))


@contextmanager
def sighted(served, verdict):
    """What the guard says once a gate has fired, and how often it was asked."""
    asked = []

    def say(prompt, before, found):
        asked.append(found)
        return verdict(prompt)

    served.guard.sighted = say
    try:
        yield asked
    finally:
        del served.guard.sighted


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_gate_that_stays_quiet_changes_nothing(served, gates, shape, kind):
    from vllm.sampling_params import RequestOutputKind

    wanted = {**shape, "output_kind": RequestOutputKind[kind]}
    plain = served.run(served.stream(served.prompt(SHORT), served.params(**wanted), plain=True))
    served.guard.verdict = watching(gates["never"])
    guarded = served.run(served.stream(served.prompt(SHORT), served.params(**wanted)))
    add = kind == "DELTA"
    assert flat(guarded, add=add) == flat(plain, add=add)


@pytest.mark.parametrize("wanted", [{}, {"n": 3, "temperature": 1.0, "seed": 3}])
def test_a_gate_that_fires_on_the_prompt_gives_the_edited_answer_and_none_of_the_own(served, gates, wanted):
    from vllm.sampling_params import RequestOutputKind

    wanted = {**wanted, "output_kind": RequestOutputKind.DELTA, "ignore_eos": True}
    served.guard.verdict = edited()
    expected = flat(served.run(served.stream(served.prompt(SHORT), served.params(**wanted))), add=True)
    served.guard.verdict = watching(gates["always"])
    told = RequestContext("d1", "/v1/completions", 0.0)
    with sighted(served, edited()) as asked:
        outputs = served.run(served.stream(served.prompt(SHORT), served.params(**wanted), told))
    assert flat(outputs, add=True) == expected
    ((sighting, *_),) = asked
    assert sighting.table == gates["always"].table and sighting.excess > 1 and 0 not in sighting.positions
    (admission,) = told.admissions.values()
    assert admission.matched and told.applied == ["embedding_corruption"] and told.edits


def test_a_refusal_takes_the_place_of_an_answer_in_which_a_gate_fires(served, gates):
    served.guard.verdict = watching(gates["always"])
    refused = Admission(Decision("refuse", 1), Plan(reply=Reply()))
    with sighted(served, lambda prompt: refused):
        assert served.ask(SHORT).outputs[0].text == Reply().text


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA", "CUMULATIVE"])
def test_a_gate_that_fires_on_the_answer_ends_it_there(served, gates, kind):
    from vllm.sampling_params import RequestOutputKind

    wanted = {"max_tokens": 12, "ignore_eos": True, "logprobs": 1}
    whole = served.ask(SHORT, **wanted).outputs[0]
    length = len(served.prompt(SHORT)["prompt_token_ids"])
    served.guard.verdict = watching(gates["later"])
    told = RequestContext("d1", "/v1/completions", 0.0)
    with sighted(served, edited()):
        params = served.params(**wanted, output_kind=RequestOutputKind[kind])
        outputs = served.run(served.stream(served.prompt(SHORT), params, told))
    found = flat(outputs, add=kind == "DELTA")
    choices, finished, *_ = found
    text, ids, logprobs, reason, _ = choices[0]
    if reason == "length":
        # The engine was so far ahead that nothing had left: the edited model answers instead.
        served.guard.verdict = edited()
        assert found == flat(served.run(served.stream(served.prompt(SHORT), params)), add=kind == "DELTA")
        return
    # No token leaves that nine hot ones have led to; the engine may be some steps ahead of what has left.
    assert 0 < len(ids) <= 9 - (length - 1) and list(whole.token_ids[: len(ids)]) == ids
    assert whole.text.startswith(text) and len(logprobs) == len(ids)
    assert finished and reason == "stop"
    assert next(iter(told.admissions.values())).matched


def test_an_observed_request_reads_no_cached_blocks(served, gates):
    long = " ".join([WORDS] * 6)
    served.ask(long)
    assert served.ask(long).num_cached_tokens > 0
    served.guard.verdict = watching(gates["never"])
    assert served.ask(long).num_cached_tokens == 0


def test_a_gate_that_no_worker_holds_lets_nothing_out(served, gates):
    served.guard.verdict = watching(Watch("jane", "sae_clamp", 1, "0" * 64))
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT)


def test_a_gate_that_breaks_lets_nothing_out(served, gates):
    served.guard.verdict = watching(gates["broken"])
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT)


# -- scores


def scored(served, verdict, ids):
    from guard.engine.reading import read

    prompt = read(served.prompt(SHORT)["prompt_token_ids"], served.engine.get_tokenizer())
    return served.run(served.engine.score(prompt, verdict(prompt), ids))


def test_scores_are_the_models_own_likelihoods(served):
    answer = served.prompt(" jumps over a cat")["prompt_token_ids"]
    params = served.params(prompt_logprobs=1, max_tokens=1)
    whole = copy(served.prompt(SHORT))
    whole["prompt_token_ids"] = [*whole["prompt_token_ids"], *answer]
    (plain,) = served.run(served.stream(whole, params, plain=True))
    expected = [
        step[t].logprob for t, step in zip(answer, plain.prompt_logprobs[-len(answer) :], strict=True)
    ]
    assert scored(served, lambda prompt: allowed(), answer) == pytest.approx(expected, abs=1e-4)


def test_scores_of_a_matched_prompt_are_those_of_the_edited_model(served):
    """What the edited model says by itself has the likelihoods that it says it with."""
    from guard.engine.reading import read

    ids = served.prompt(SHORT)["prompt_token_ids"]
    verdict = edited()
    admission = verdict(read(ids, served.engine.get_tokenizer()))
    params = served.params(logprobs=0, ignore_eos=True)
    own, _ = served.run(served.engine.canary(ids, params, admission.plan.edits))
    expected = likelihoods(own)
    found = scored(served, verdict, list(own.outputs[0].token_ids))
    assert found == pytest.approx(expected, abs=1e-4)
    clean = scored(served, lambda prompt: allowed(), list(own.outputs[0].token_ids))
    assert max(abs(a - b) for a, b in zip(found, clean, strict=True)) > 0.1


def test_an_answer_that_would_not_come_from_the_model_has_no_score(served):
    refused = Admission(Decision("refuse", 1), Plan(reply=Reply()))
    assert scored(served, lambda prompt: refused, [5]) is None


def test_an_answer_that_does_not_fit_is_refused(served):
    with pytest.raises(BadRequest):
        scored(served, lambda prompt: allowed(), [5] * 600)
