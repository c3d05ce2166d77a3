"""What the model says on its way out, on a real engine: forbidden texts never leave, whatever the request looks like,
and everything else is as it would be without a guard."""

from __future__ import annotations

from itertools import pairwise

import pytest

from guard.context import RequestContext
from guard.detection.literals import Literals
from guard.detection.text import fold
from guard.types import Reply
from tests.engine.conftest import edited
from tests.engine.test_client import flat
from tests.guard.detection.test_literals import target

pytestmark = pytest.mark.engine
SHORT = "the quick brown fox"
LONG = {"max_tokens": 60, "ignore_eos": True}


def forbid(served, *texts):
    """Only these are forbidden from now on; what the guard sees of it."""
    literals = Literals([target(f"t{i}", text) for i, text in enumerate(texts)])
    served.guard.look = lambda text, begun, ended: literals.look(text, begun, lambda *_: True, ended=ended)
    return literals


@pytest.fixture
def spoken(served):
    """The model's own answer, and two words that stand together in the middle of it."""
    own = served.ask(SHORT, **LONG, logprobs=0).outputs[0]
    folded = fold(own.text)
    words = [w for w in folded.text.split(" ") if len(w) > 1]
    pairs = [f"{a} {b}" for a, b in pairwise(words) if f" {a} {b} " in folded.text]
    wanted = pairs[len(pairs) // 2]
    start = folded.starts[folded.text.index(wanted)]
    assert start > 5 and Literals([target("t", wanted)]).said_in(own.text)
    return own, wanted, start


def streamed(served, kind, told=None, **wanted):
    from vllm.sampling_params import RequestOutputKind

    params = served.params(**LONG, **wanted, output_kind=RequestOutputKind[kind])
    outputs = served.run(served.stream(served.prompt(SHORT), params, told))
    return flat(outputs, add=kind == "DELTA")


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA", "CUMULATIVE"])
def test_an_answer_ends_in_front_of_what_is_forbidden(served, spoken, kind):
    own, wanted, start = spoken
    forbid(served, wanted)
    told = RequestContext("d1", "/v1/completions", 0.0)
    choices, finished, *_ = streamed(served, kind, told, logprobs=0)
    text, ids, logprobs, reason, stop = choices[0]
    assert text == own.text[:start]
    assert (finished, reason, stop) == (True, "stop", None)
    assert list(own.token_ids[: len(ids)]) == ids and len(logprobs) == len(ids)
    assert served.engine.get_tokenizer().decode(ids) in text
    assert told.applied == ["output_filter"]
    assert told.events == [{"event": "output", "target": "t0", "said": "name", "action": "cut"}]


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA", "CUMULATIVE"])
def test_what_is_nearly_forbidden_leaves_whole(served, spoken, kind):
    own, wanted, _ = spoken
    plain = streamed(served, kind, logprobs=0)
    forbid(served, f"{wanted} zzz", f"{wanted}zzz")
    assert streamed(served, kind, logprobs=0) == plain
    assert plain[0][0][0] == own.text


def test_each_choice_is_judged_by_itself(served):
    wanted = {"n": 3, "temperature": 1.0, "seed": 3}
    plain, *_ = streamed(served, "FINAL_ONLY", **wanted)
    texts = {i: choice[0] for i, choice in plain.items()}
    words = {i: [w for w in fold(text).text.split(" ") if len(w) > 2] for i, text in texts.items()}
    word = next(w for w in words[1][2:] if w not in fold(texts[0]).text.split(" "))
    literals = forbid(served, word)
    guarded, finished, *_ = streamed(served, "FINAL_ONLY", **wanted)
    assert finished and guarded[0][0] == texts[0]
    assert texts[1].startswith(guarded[1][0]) and guarded[1][3] == "stop"
    assert not any(literals.said_in(choice[0]) for choice in guarded.values())
    assert streamed(served, "DELTA", **wanted)[0] == guarded


@pytest.mark.parametrize(
    ("reply", "reason"), [(Reply(), "stop"), (Reply("content_filter", "No."), "content_filter")]
)
def test_where_nothing_has_left_the_reply_takes_its_place(served, reply, reason):
    own = served.ask(SHORT, **LONG).outputs[0].text
    first = fold(own)
    forbid(served, first.text.split(" ")[0])
    served.guard.reply = reply
    choices, *_ = streamed(served, "DELTA", logprobs=0)
    text, ids, logprobs, ended, _ = choices[0]
    if first.starts[0] == 0:
        assert (text, ended) == (reply.text, reason)
        assert served.engine.get_tokenizer().decode(ids) == reply.text and len(logprobs) == len(ids)
    else:
        assert text == own[: first.starts[0]]


def test_half_of_a_structure_is_never_given_as_a_whole(served, spoken):
    _, wanted, _ = spoken
    forbid(served, wanted)
    told = RequestContext("d1", "/v1/chat/completions", 0.0, must_parse=True)
    choices, *_ = streamed(served, "FINAL_ONLY", told)
    assert choices[0][3] == "content_filter"


def test_edited_answers_are_judged_too(served):
    served.guard.verdict = edited()
    own, *_ = streamed(served, "FINAL_ONLY")
    folded = fold(own[0][0])
    word = next(w for w in folded.text.split(" ")[2:] if len(w) > 2)
    literals = forbid(served, word)
    choices, *_ = streamed(served, "DELTA")
    assert own[0][0].startswith(choices[0][0]) and not literals.said_in(choices[0][0])


def test_tokens_without_text_are_read_all_the_same(served, spoken):
    own, wanted, start = spoken
    literals = forbid(served, wanted)
    choices, *_ = streamed(served, "DELTA", detokenize=False)
    text = served.engine.get_tokenizer().decode(choices[0][1])
    assert own.text[:start].startswith(text.rstrip("\ufffd")) and not literals.said_in(text)


def test_beams_do_not_go_on_with_what_is_forbidden(served, spoken):
    """As vLLM's beam search asks: one token at a time, all likely ones told."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from guard.engine.rewriting import beam_step

    own, wanted, _ = spoken
    literals = forbid(served, wanted)
    params = SamplingParams(
        temperature=0.0, max_tokens=1, logprobs=4, detokenize=False, output_kind=RequestOutputKind.CUMULATIVE
    )
    assert beam_step(params)
    tokenizer, told = served.engine.get_tokenizer(), RequestContext("d1", "/v1/chat/completions", 0.0)
    prompt = served.prompt(SHORT)
    begun = len(prompt["prompt_token_ids"])
    for token in own.token_ids:  # the beam that would say what the model says
        (output,) = served.run(served.stream(prompt, params, told))
        step = output.outputs[0].logprobs[0]
        said = prompt["prompt_token_ids"][begun:]
        assert not any(literals.said_in(tokenizer.decode([*said, likely])) for likely in step)
        if token not in step:
            break
        prompt = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], token]}
    assert 0 < len(prompt["prompt_token_ids"]) - begun < len(own.token_ids)


def test_a_guard_that_cannot_listen_gives_nothing_out(served):
    from guard.errors import GuardUnavailable

    def broken(text, begun, ended):
        raise RuntimeError("automaton")

    served.guard.look = broken
    with pytest.raises(GuardUnavailable):
        served.ask(SHORT)
