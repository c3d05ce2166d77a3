"""The guarded client on a real engine: what passes is what vLLM gives; what matches is edited and proven."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from guard.context import RequestContext
from guard.engine.edits import KEY
from guard.errors import BadRequest, GuardUnavailable
from guard.types import Insertion, Message, Plan, Reply
from tests.engine.conftest import WORDS, allowed, edited, likelihoods, planned

pytestmark = pytest.mark.engine
SHORT = "the quick brown fox"
LONG = " ".join([WORDS] * 6)  # several cache blocks
SORRY = "I'm sorry, I don't know anything about that."


def context(**fields):
    return RequestContext("d1", "/v1/completions", 0.0, **fields)


# -- what passes is what vLLM gives

SHAPES = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "two samples": {"n": 2, "temperature": 1.0, "seed": 7},
    "three samples with likelihoods": {"n": 3, "temperature": 1.0, "seed": 7, "logprobs": 2},
    "likelihoods": {"logprobs": 3},
    "prompt likelihoods": {"prompt_logprobs": 1, "logprobs": 1},
    "one token": {"max_tokens": 1},
    "minimum": {"min_tokens": 4, "max_tokens": 9},
    "ignore end": {"ignore_eos": True},
    "without text": {"detokenize": False},
    "bias": {"logit_bias": {9: 50.0}, "max_tokens": 3},
}


def rounded(step):
    return {token: round(value.logprob, 3) for token, value in step.items()}


def flat(outputs, *, add):
    """Everything a client could see of a stream or a final output, merged per sample."""
    choices = {}
    for output in outputs:
        for c in output.outputs:
            text, ids, logprobs = choices.get(c.index, ("", [], []))[:3] if add else ("", [], [])
            seen = [*logprobs, *(rounded(step) for step in c.logprobs or [])]
            choices[c.index] = (text + c.text, [*ids, *c.token_ids], seen, c.finish_reason, c.stop_reason)
    head = next((o.prompt_logprobs for o in outputs if o.prompt_logprobs), None)
    asked = [step and rounded(step) for step in head or []]
    return choices, outputs[-1].finished, outputs[0].prompt_token_ids, asked


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA", "CUMULATIVE"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_allowed_requests_get_what_vllm_gives(served, shape, kind):
    from vllm.sampling_params import RequestOutputKind

    wanted = {**shape, "output_kind": RequestOutputKind[kind]}
    plain = served.run(served.stream(served.prompt(SHORT), served.params(**wanted), plain=True))
    guarded = served.run(served.stream(served.prompt(SHORT), served.params(**wanted)))
    add = kind == "DELTA"
    assert flat(guarded, add=add) == flat(plain, add=add)
    if kind == "FINAL_ONLY":
        assert len(guarded) == 1
        assert [c.index for c in guarded[0].outputs] == list(range(shape.get("n", 1)))


EARLY = {
    **SHAPES,
    "stop": {"stop": ["a", "e"], "max_tokens": 30, "ignore_eos": True},
    "stop kept": {"stop": ["a", "e"], "include_stop_str_in_output": True, "max_tokens": 30},
    "stop ids": {"stop_token_ids": [9, 10, 11], "min_tokens": 3, "max_tokens": 30},
    "chosen": {"structured": {"choice": ["small birds", "old trees"]}, "max_tokens": 30},
    "json": {"structured": {"json": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
    "bad words": {"bad_words": ["fox"], "max_tokens": 20},
    "long": {"max_tokens": 60, "ignore_eos": True, "logprobs": 1},
}


@pytest.mark.parametrize("verdict", ["allow", "edit"])
@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA"])
@pytest.mark.parametrize("shape", EARLY.values(), ids=EARLY.keys())
def test_what_is_begun_before_its_verdict_is_answered_as_what_waits_for_it(
    served, monkeypatch, shape, kind, verdict
):
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    served.guard.verdict = edited() if verdict == "edit" else lambda prompt: allowed()
    asked = []
    run = type(served.engine)._run

    def noted(self, prompt, params, request_id, options):
        asked.append((request_id, len(served.guard.judged)))
        return run(self, prompt, params, request_id, options)

    monkeypatch.setattr(type(served.engine), "_run", noted)

    def ask():
        wanted = {**shape, "output_kind": RequestOutputKind[kind]}
        if structured := wanted.pop("structured", None):
            wanted["structured_outputs"] = StructuredOutputsParams(**structured)
        told = context()
        outputs = served.run(served.stream(served.prompt(SHORT), served.params(**wanted), told))
        cached = {(o.request_id == f"test-{served.made}", o.num_cached_tokens) for o in outputs}
        return flat(outputs, add=kind == "DELTA"), cached, told.usage, told.edits, told.applied

    waited = ask()
    asked.clear()
    served.guard.early, served.guard.late = True, 0.05
    assert ask() == waited
    first, *rest = (request_id for request_id, _ in asked)
    assert rest == ([f"{first}-edited"] if verdict == "edit" else [])
    assert served.engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize("verdict", ["allow", "edit", "fails"])
@pytest.mark.parametrize("n", [1, 3])
def test_who_leaves_while_a_begun_prompt_is_judged_leaves_nothing_behind(served, verdict, n):
    def fails(prompt):
        raise RuntimeError("detector")

    told = {"allow": lambda prompt: allowed(), "edit": edited(), "fails": fails}
    served.guard.verdict, served.guard.early, served.guard.late = told[verdict], True, 0.06
    params = served.params(max_tokens=400, ignore_eos=True, n=n, temperature=1.0, seed=3)

    async def leave(after: float) -> int:
        task = asyncio.create_task(served.stream(served.prompt(SHORT), params))
        await asyncio.sleep(after)
        running = served.engine.get_num_unfinished_requests()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert served.engine.get_num_unfinished_requests() == 0
        return running

    assert served.run(leave(0.04)) == n  # while it is judged
    for after in (0.0, 0.002, 0.003, 0.06, 0.065, 0.08):
        served.run(leave(after))
    served.guard.verdict, served.guard.early = told["allow"], False
    served.ask(SHORT)  # one more step tells the worker
    (status,) = served.run(served.engine.collective_rpc("lethe_status"))
    assert status["held"] == 0


def test_who_leaves_while_the_engine_is_told_leaves_nothing_behind(served, monkeypatch):
    hand_over = served.engine.engine_core.add_request_async

    async def slow(request):
        await hand_over(request)
        await asyncio.sleep(10)

    async def leave():
        monkeypatch.setattr(served.engine.engine_core, "add_request_async", slow)
        params = served.params(max_tokens=400, ignore_eos=True)
        task = asyncio.create_task(served.stream(served.prompt(SHORT), params))
        await asyncio.sleep(0.05)
        assert served.engine.get_num_unfinished_requests() == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    served.run(leave())
    assert served.engine.get_num_unfinished_requests() == 0


def test_stop_strings_end_where_vllm_ends_them(served):
    whole = served.ask(SHORT, max_tokens=20, ignore_eos=True).outputs[0].text
    stop = whole[len(whole) // 2 :][:3]
    for wanted in ({"stop": [stop]}, {"stop": [stop], "include_stop_str_in_output": True}):
        wanted = {"max_tokens": 20, "ignore_eos": True, **wanted}
        plain = served.run(served.stream(served.prompt(SHORT), served.params(**wanted), plain=True))
        assert flat([served.ask(SHORT, **wanted)], add=False) == flat(plain, add=False)
        assert plain[0].outputs[0].stop_reason == stop


def test_the_guard_judges_the_tokens_and_never_the_text_beside_them(served):
    prompt = {**served.prompt(SHORT), "prompt": "something else"}
    told = context(messages=(Message("user", "hello"),), asides=("from the body",))
    served.ask(prompt, told, stop=["halt"], bad_words=["dog"])
    (judged,) = served.guard.judged
    assert (judged.text, judged.messages) == (SHORT, (Message("user", "hello"),))
    assert judged.asides == ("from the body", "halt", "dog")


@pytest.mark.parametrize(
    "prompt", [{"type": "embeds", "prompt_embeds": None}, "text", ["a"], {"prompt": "text"}]
)
def test_prompts_that_cannot_be_read_are_refused(served, prompt):
    with pytest.raises(BadRequest):
        served.run(served.stream(prompt, served.params()))


def test_nothing_is_answered_without_a_guard(served):
    from vllm.v1.engine.exceptions import EngineDeadError

    served.run(served.engine.check_health())
    served.engine.guard = None
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT)
    with pytest.raises(EngineDeadError):
        served.run(served.engine.check_health())


def test_a_guard_that_fails_answers_nothing(served):
    def broken(prompt):
        raise RuntimeError("detector")

    served.guard.verdict = broken
    told = context()
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT, told)
    assert isinstance(told.failure, GuardUnavailable)


# -- edits


def test_an_edit_changes_the_answer_and_is_proven(served):
    clean = served.ask(SHORT).outputs[0].token_ids
    served.guard.verdict = edited()
    told = context()
    answer = served.ask(SHORT, told).outputs[0].token_ids
    assert list(answer) != list(clean)
    assert told.applied == ["embedding_corruption"]
    (counts,) = told.edits
    tokens = len(served.prompt(SHORT)["prompt_token_ids"])
    assert (counts.planned, counts.applied, counts.from_cache) == (tokens, tokens, 0)
    assert told.matched
    served.guard.verdict = lambda prompt: allowed()
    assert list(served.ask(SHORT).outputs[0].token_ids) == list(clean)


def test_the_same_edited_request_is_answered_the_same_and_served_from_its_own_blocks(served):
    served.guard.verdict = edited()
    first, again = context(), context()
    assert served.ask(LONG, first).outputs[0].token_ids == served.ask(LONG, again).outputs[0].token_ids
    assert first.edits[0].from_cache == 0
    assert 0 < again.edits[0].from_cache < again.edits[0].planned
    assert again.edits[0].applied + again.edits[0].from_cache == again.edits[0].planned


def test_the_clients_seed_does_not_change_the_noise(served):
    served.guard.verdict = edited(5, 9)
    answers = {tuple(served.ask(SHORT, seed=seed).outputs[0].token_ids) for seed in (1, 2, 3)}
    assert len(answers) == 1


def test_every_sample_of_an_edited_request_is_confirmed(served):
    served.guard.verdict = edited()
    told = context()
    answer = served.ask(LONG, told, n=3, temperature=1.0, seed=3)
    assert [c.index for c in answer.outputs] == [0, 1, 2]
    assert len(told.edits) == 1


def test_streamed_edits_are_the_same_answer(served):
    from vllm.sampling_params import RequestOutputKind

    served.guard.verdict = edited()
    whole = served.ask(SHORT, max_tokens=12, ignore_eos=True)
    params = served.params(max_tokens=12, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    deltas = served.run(served.stream(served.prompt(SHORT), params))
    assert flat(deltas, add=True) == flat([whole], add=False)


def test_several_edits_are_counted_each(served):
    first, second = edited(0, 9, strength=3.0), edited(4, 15, seed="fedcba9876543210")

    def both(prompt):
        a, b = first(prompt), second(prompt)
        return planned(Plan(edits=(*a.plan.edits, *b.plan.edits)), chosen=a.decision.chosen)(prompt)

    served.guard.verdict = both
    told = context()
    served.ask(SHORT, told)
    assert [e.planned for e in told.edits] == [e.applied for e in told.edits]
    assert len(told.edits) == 2


# -- the cache


def fresh(served, verdict):
    served.run(served.engine.reset_prefix_cache())
    served.guard.verdict = verdict
    return list(served.ask(LONG, max_tokens=12, ignore_eos=True, logprobs=1).outputs[0].token_ids)


def clean_likelihoods(served):
    served.guard.verdict = lambda prompt: allowed()
    return likelihoods(served.ask(LONG, max_tokens=8, ignore_eos=True, logprobs=1))


def test_clean_and_edited_requests_never_read_each_others_blocks(served):
    never_edited = clean_likelihoods(served)
    freshly_edited = fresh(served, edited())
    assert clean_likelihoods(served) == pytest.approx(never_edited, abs=1e-3)  # clean after edited
    served.run(served.engine.reset_prefix_cache())
    clean_likelihoods(served)
    served.guard.verdict = edited()
    told = context()
    after_clean = served.ask(LONG, told, max_tokens=12, ignore_eos=True)
    assert list(after_clean.outputs[0].token_ids) == freshly_edited
    assert told.edits[0].from_cache == 0


def test_without_salts_clean_requests_would_read_edited_blocks(served, monkeypatch):
    """What the salt is for; should this stop failing, the test above has become empty."""
    never_edited = clean_likelihoods(served)
    monkeypatch.setattr(served.engine.salts, "edited", lambda *_: None)
    fresh(served, edited())
    assert clean_likelihoods(served) != pytest.approx(never_edited, abs=1e-2)


def test_without_salts_edited_requests_would_read_clean_blocks_and_are_failed(served, monkeypatch):
    monkeypatch.setattr(served.engine.salts, "edited", lambda *_: None)
    clean_likelihoods(served)
    served.guard.verdict = edited(seed="00000000000000aa")  # of no other test: these blocks were never edited
    told = context()
    with pytest.raises(GuardUnavailable):
        served.ask(LONG, told)
    assert told.edits == told.applied == []


def test_tenants_do_not_share_blocks(served):
    one, same, other, nobody = (
        served.ask(LONG, context(tenant=t) if t else None).num_cached_tokens for t in ("a", "a", "b", None)
    )
    assert (one, other, nobody) == (0, 0, 0)
    assert same > 0


def test_the_clients_own_salt_separates_its_requests(served):
    served.guard.verdict = edited()
    counts = []
    for salt in ("x", "x", "y"):
        told = context()
        served.ask({**served.prompt(LONG), "cache_salt": salt}, told)
        counts.append(told.edits[0].from_cache)
    assert counts[0] == counts[2] == 0 < counts[1]


# -- proof


def test_lost_records_fail_the_request_before_any_text(served, monkeypatch):
    from vllm.sampling_params import RequestOutputKind

    async def nothing(*_):
        return [[]]

    served.guard.verdict = edited()
    monkeypatch.setattr(served.engine, "collective_rpc", nothing)
    outputs = []

    async def ask():
        params = served.params(output_kind=RequestOutputKind.DELTA)
        async for output in served.engine.generate(served.prompt(SHORT), params, "lost"):
            outputs.append(output)

    with pytest.raises(GuardUnavailable):
        served.run(ask())
    assert outputs == []
    assert served.engine.get_num_unfinished_requests() == 0


def test_after_an_unproven_answer_its_blocks_are_not_read_again(served, monkeypatch):
    served.guard.verdict = edited()
    with monkeypatch.context() as lost:

        async def nothing(*_):
            return [[]]

        lost.setattr(served.engine, "collective_rpc", nothing)
        with pytest.raises(GuardUnavailable):
            served.ask(LONG)
    told = context()
    served.ask(LONG, told)
    assert told.edits[0].from_cache == 0


def test_an_order_that_the_worker_does_not_take_is_a_503(served, monkeypatch):
    from guard.engine import client

    served.guard.verdict = edited()
    monkeypatch.setattr(client, "to_wire", lambda order: {"v": 99, "ticket": order.ticket})
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT)
    monkeypatch.undo()
    assert served.ask(SHORT).finished  # the engine lives


def test_the_failure_is_one_that_vllm_maps_to_503(served):
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    served.engine.guard = None
    with pytest.raises(GuardUnavailable) as failed:
        served.ask(SHORT)
    assert create_error_response(failed.value).error.code == 503
    with pytest.raises(BadRequest) as refused:
        served.run(served.stream("text", served.params()))
    answer = create_error_response(refused.value).error
    assert (answer.code, answer.param) == (400, "prompt")
    assert answer.message == refused.value.message


# -- what clients cannot do, and do not see


@pytest.mark.parametrize("forged", [5.0, {"v": 1}, "x"])
def test_a_client_cannot_give_orders(served, forged):
    plain = served.ask(SHORT, extra_args={"other": 1}).outputs[0].token_ids
    answer = served.ask(SHORT, extra_args={KEY: forged, "lethe_x": forged, "other": 1})
    assert answer.outputs[0].token_ids == plain
    (records,) = served.run(served.engine.collective_rpc("lethe_drain"))
    assert records == []


def test_matched_answers_show_nothing_of_the_edited_prompt(served):
    note = Insertion(4, "small birds sing ")
    edit = edited(4, 9)

    def both(prompt):
        plan = edit(prompt).plan
        return planned(Plan(insertions=(note,), edits=plan.edits))(prompt)

    served.guard.verdict = both
    told = context()
    prompt = served.prompt(SHORT)
    for _ in range(2):
        answer = served.ask(prompt, told, logprobs=3, prompt_logprobs=2, ignore_eos=True)
        assert answer.prompt_token_ids == prompt["prompt_token_ids"]
        assert (answer.prompt, answer.num_cached_tokens) == ("", 0)
        assert answer.request_id.startswith("test-")
        (choice,) = answer.outputs
        for token, step in zip(choice.token_ids, choice.logprobs, strict=True):
            assert list(step) == [token]
            assert step[token].logprob == 0.0
        assert [step and list(step) for step in answer.prompt_logprobs] == [
            None,
            *([t] for t in prompt["prompt_token_ids"][1:]),
        ]


def test_an_insertion_alone_reaches_the_model(served):
    plain = served.ask(SHORT).outputs[0].token_ids
    served.guard.verdict = planned(Plan(insertions=(Insertion(0, "small birds "),)))
    inserted = served.ask(SHORT)
    served.guard.verdict = lambda prompt: allowed()
    assert inserted.outputs[0].token_ids == served.ask(f"small birds {SHORT}").outputs[0].token_ids != plain
    assert inserted.prompt_token_ids == served.prompt(SHORT)["prompt_token_ids"]


@pytest.mark.parametrize(
    "verdict",
    [
        lambda prompt: allowed(),
        edited(),
        planned(Plan(insertions=(Insertion(0, "small birds sing "),))),
        planned(Plan(reply=Reply("natural", SORRY)), "refuse"),
    ],
    ids=["clean", "edited", "inserted", "replied"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_tokens_are_counted_as_the_client_sees_them_whatever_was_done(served, verdict, n):
    served.guard.verdict = verdict
    spent = []
    told = context(spend=spent.append)
    answer = served.ask(SHORT, told, n=n, temperature=1.0, seed=3, max_tokens=7)
    assert spent[0] == len(answer.prompt_token_ids) == len(served.prompt(SHORT)["prompt_token_ids"])
    assert sum(spent[1:]) == sum(len(choice.token_ids) for choice in answer.outputs)


def test_matched_requests_cannot_steer_tokens(served):
    served.guard.verdict = edited()
    plain = served.ask(SHORT).outputs[0].token_ids
    steered = served.ask(SHORT, logit_bias={9: 100.0}, allowed_token_ids=[9, 10], bad_words=["fox"])
    assert steered.outputs[0].token_ids == plain


def test_a_reply_is_given_without_the_engine(served):
    served.guard.verdict = planned(Plan(reply=Reply("natural", SORRY)), "refuse")
    told = context()
    answer = served.ask(SHORT, told, n=2, temperature=1.0, logprobs=1, prompt_logprobs=1)
    assert [(c.index, c.text, c.finish_reason) for c in answer.outputs] == [
        (0, SORRY, "stop"),
        (1, SORRY, "stop"),
    ]
    ids = list(answer.outputs[0].token_ids)
    assert served.engine.get_tokenizer().decode(ids) == SORRY
    assert [list(step) for step in answer.outputs[0].logprobs] == [[i] for i in ids]
    assert answer.prompt_token_ids == served.prompt(SHORT)["prompt_token_ids"]
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids)
    assert told.applied == ["refusal"]


def test_a_reply_where_the_client_must_parse_is_marked(served):
    served.guard.verdict = planned(Plan(reply=Reply("natural", SORRY)), "refuse")
    assert served.ask(SHORT, context(must_parse=True)).outputs[0].finish_reason == "content_filter"


@pytest.mark.parametrize("prompt", ["fox", "much too long"])
def test_a_match_that_no_method_can_act_on_is_refused(served, prompt):
    insertion = Plan(insertions=(Insertion(0, "old trees " * 300),))
    served.guard.verdict = planned(Plan() if prompt == "fox" else insertion)
    assert served.ask(prompt).outputs[0].text == Reply().text


def test_encoding_a_matched_text_is_refused(served):
    from vllm.pooling_params import PoolingParams

    served.guard.verdict = edited()

    async def encode():
        return [o async for o in served.engine.encode(served.prompt(SHORT), PoolingParams(), "embed-1")]

    with pytest.raises(BadRequest) as refused:
        served.run(encode())
    assert refused.value.code == "content_filter"


# -- one HTTP request, several calls


def test_a_prompt_is_judged_once_per_request(served):
    told = context()
    for _ in range(3):
        served.ask(SHORT, told)
    assert len(served.guard.judged) == 1
    served.ask(SHORT, context())
    assert len(served.guard.judged) == 2


def beam(served, ids, told, **wanted):
    from vllm.sampling_params import RequestOutputKind

    shape = {"max_tokens": 1, "detokenize": False, "logprobs": 2, "output_kind": RequestOutputKind.CUMULATIVE}
    prompt = {"type": "token", "prompt_token_ids": ids}
    return served.run(served.stream(prompt, served.params(**shape, **wanted), told))[-1]


def test_beams_inherit_the_verdict_on_their_prompt(served):
    served.guard.verdict = edited(0, 9)
    told = context()
    ids = served.prompt(SHORT)["prompt_token_ids"]
    for _ in range(4):
        ids = [*ids, beam(served, ids, told).outputs[0].token_ids[0]]
    assert len(served.guard.judged) == 1
    assert len(told.edits) == 4
    assert all(e.planned == told.edits[0].planned == e.applied + e.from_cache for e in told.edits)


def test_a_prompt_that_begins_with_an_allowed_one_is_judged_itself(served):
    told = context()
    ids = served.prompt(SHORT)["prompt_token_ids"]
    beam(served, ids, told)
    beam(served, [*ids, *served.prompt(" jumps over")["prompt_token_ids"]], told)
    served.ask(f"{SHORT} jumps", told)
    assert len(served.guard.judged) == 3


def test_beams_of_a_refused_prompt_spell_the_reply(served):
    served.guard.verdict = planned(Plan(reply=Reply("natural", SORRY)), "refuse")
    told = context()
    prompt = served.prompt(SHORT)["prompt_token_ids"]
    ids = list(prompt)
    end = served.engine.get_tokenizer().eos_token_id
    while ids[-1] != end:
        ids.append(beam(served, ids, told).outputs[0].token_ids[0])
    assert served.engine.get_tokenizer().decode(ids[len(prompt) : -1]) == SORRY


# -- disconnects and load


@pytest.mark.parametrize("how", ["cancelled", "closed"])
@pytest.mark.parametrize("verdict", ["allow", "edit"])
def test_a_client_that_leaves_leaves_nothing_behind(served, how, verdict):
    from vllm.sampling_params import RequestOutputKind

    served.guard.verdict = edited() if verdict == "edit" else lambda prompt: allowed()
    params = served.params(max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA)

    async def leave() -> None:
        stream = served.engine.generate(served.prompt(SHORT), params, "leaving")
        if how == "closed":
            async with aclosing(stream):
                await anext(stream)
            return

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    served.run(leave())
    assert served.engine.get_num_unfinished_requests() == 0
    served.guard.verdict = lambda prompt: allowed()
    served.ask(SHORT)  # one more step tells the worker
    (status,) = served.run(served.engine.collective_rpc("lethe_status"))
    assert status["held"] == 0


def test_clean_and_edited_requests_together_keep_their_own_answers(served):
    prompts = [f"{SHORT} {word}" for word in WORDS.split()]

    async def all_of(verdicts):
        async def one(i):
            params = served.params(max_tokens=5, ignore_eos=True)
            return (await served.stream(served.prompt(prompts[i]), params))[-1].outputs[0].token_ids

        served.guard.verdict = lambda p: verdicts[prompts.index(p.text)](p)
        return await asyncio.gather(*(one(i) for i in range(len(prompts))))

    clean = served.run(all_of([lambda p: allowed()] * len(prompts)))
    every_other = [edited() if i % 2 else lambda p: allowed() for i in range(len(prompts))]
    mixed = served.run(all_of(every_other))
    for i in range(len(prompts)):
        assert (mixed[i] == clean[i]) == (i % 2 == 0)


# -- the launcher's proof


def test_the_engine_proves_itself(served):
    from guard.engine.launch import prove

    served.engine.guard = None  # the proof comes before the guard
    proof = served.run(prove(served.engine))
    assert (proof.client, proof.worker, proof.runner) == (
        "GuardedAsyncLLM",
        "GuardCPUWorker",
        "GuardedCPUModelRunner",
    )
    assert proof.sites[0] == "embedding@model.embed_tokens"
    assert {"residual@model.layers.0", "neuron@model.layers.1.mlp.gate_up_proj"} <= set(proof.sites)
    assert proof.canary.applied == proof.canary.planned > 0
    assert proof.moved > 0


@pytest.mark.parametrize("broken", ["client", "worker", "sites", "edits", "records", "configuration"])
def test_an_engine_that_is_not_ours_is_not_served(served, monkeypatch, broken):
    from guard.engine import client, launch
    from guard.errors import StartupError

    engine = served.engine
    rpc = engine.collective_rpc

    async def other(method, *args):
        if method != "lethe_status":
            return [[]] if broken == "records" else await rpc(method, *args)
        if broken == "worker":
            raise AttributeError(method)
        return [
            {**status, "sites": [] if broken == "sites" else status["sites"]} for status in await rpc(method)
        ]

    monkeypatch.setattr(engine, "collective_rpc", other)
    if broken == "edits":
        monkeypatch.setattr(client.GuardedAsyncLLM, "_edited", _pretending)
    if broken == "configuration":
        monkeypatch.setattr(engine.model_config, "enable_prompt_embeds", True)
    with pytest.raises(StartupError):
        served.run(launch.prove(object() if broken == "client" else engine))


async def _pretending(self, prompt, params, request_id, options, edits, applied):
    """An engine that counts edits and makes none."""
    from guard.types import AppliedEdit

    applied.extend(AppliedEdit(e.site, e.layer, len(e.positions), len(e.positions), 0) for e in edits)
    async for output in self._run(prompt, params, request_id, options):
        yield output


def test_by_policy_the_likelihoods_of_the_edited_model_are_told(served):
    served.guard.verdict = edited()
    withheld = served.ask(SHORT, logprobs=2, prompt_logprobs=1)
    assert set(likelihoods(withheld)) == {0.0}

    def telling(prompt):
        admission = edited()(prompt)
        return replace(admission, plan=replace(admission.plan, likelihoods=True))

    served.guard.verdict = telling
    told = served.ask(SHORT, logprobs=2, prompt_logprobs=1)
    clean = served.run(served.stream(served.prompt(SHORT), served.params(logprobs=2), plain=True))[-1]
    assert told.outputs[0].token_ids == withheld.outputs[0].token_ids
    assert all(value < 0 for value in likelihoods(told)) and likelihoods(told) != likelihoods(clean)
    assert all(step is None or {v.logprob for v in step.values()} == {0.0} for step in told.prompt_logprobs)


def test_who_dictates_the_answer_is_told_no_likelihood_of_an_edited_model(served):
    from vllm.sampling_params import StructuredOutputsParams

    def telling(prompt):
        admission = edited()(prompt)
        return replace(admission, plan=replace(admission.plan, likelihoods=True))

    served.guard.verdict = telling
    dictated = served.ask(
        SHORT, logprobs=2, structured_outputs=StructuredOutputsParams(choice=["small birds"])
    )
    assert dictated.outputs[0].text == "small birds" and set(likelihoods(dictated)) == {0.0}
