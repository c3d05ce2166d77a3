"""What the model says on its way out, on a real engine: forbidden texts never leave, whatever the request looks like,
and everything else is as it would be without a guard."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest

from guard.context import RequestContext, enter
from guard.context import leave as leave_context
from guard.detection.literals import Found, Hit, Literals
from guard.detection.text import fold
from guard.engine.answers import unfinished
from guard.engine.reading import Spelling
from guard.speech import Speech
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

    params = served.params(**{**LONG, **wanted}, output_kind=RequestOutputKind[kind])
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


# -- another answer behind what has left


def regenerating(served, follow=None, tries=2):
    """The guard asks for another answer, from an edited model unless told otherwise."""
    served.guard.policy = ("regenerate", tries)
    asked = []

    def again(prompt, hit):
        asked.append((prompt, hit))
        return (follow or edited())(prompt)

    served.guard.follow = again
    return asked


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA", "CUMULATIVE"])
def test_an_answer_goes_on_otherwise_from_before_what_was_found(served, spoken, kind):
    own, wanted, start = spoken
    literals = forbid(served, wanted)
    asked = regenerating(served)
    told = RequestContext("d1", "/v1/completions", 0.0)
    choices, finished, ids_of_prompt, _ = streamed(served, kind, told)
    text, ids, _, reason, stop = choices[0]
    (prompt, hit), *_ = asked
    assert hit.target_id == "t0" and own.text[:start].startswith(prompt.text[len(SHORT) :])
    assert len(text) > start and text.startswith(own.text[: start - 8]) and not literals.said_in(text)
    assert finished and reason == "length" and len(ids) == LONG["max_tokens"] and stop is None
    assert Spelling(served.engine.get_tokenizer()).add(ids, ended=True) == text
    assert ids_of_prompt == served.prompt(SHORT)["prompt_token_ids"]
    assert told.matched and told.events[0]["action"] == "regenerate" and told.edits
    assert "output_filter" in told.applied and "embedding_corruption" in told.applied


def test_streams_that_go_on_otherwise_are_the_whole_answers(served, spoken):
    forbid(served, spoken[1])
    regenerating(served)
    assert (
        streamed(served, "DELTA")[0][0][0]
        == streamed(served, "CUMULATIVE")[0][0][0]
        == streamed(served, "FINAL_ONLY")[0][0][0]
    )


async def kept(served, ids, sizes, place):
    """What is kept of an answer in front of the character at `place`, where the engine tells so many tokens at once."""
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from guard.engine.speaking import Sample

    def look(text, begun, ended):  # looks as far as CONTEXT back, so the text is known by its end
        start = place - (speech.heard - len(text))
        late = len(text) > start + 3 or (ended and len(text) > start)
        return (
            Found(max(start, 0), Hit("t", start, start + 3, named=True))
            if late
            else Found(min(len(text), start))
        )

    tokenizer, params = served.engine.get_tokenizer(), served.params(**LONG)
    request = SimpleNamespace(sampling_params=params, prompt_token_ids=PROMPT, request_id="")
    engines = IncrementalDetokenizer.from_new_request(tokenizer, request)
    speech = Speech(look)
    sample = Sample(speech, tokenizer, PROMPT, params)
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        engines.update(list(ids[end - size : end]), False)
        text = engines.get_next_output_text(False, True)
        delta = CompletionOutput(0, text, list(ids[end - size : end]), None, [{} for _ in range(size)])
        delta.finish_reason = "length" if end == len(ids) else None
        await sample.take(delta)
        if speech.hit is not None:
            sample.pause()
            break
    return tuple(sample.said), speech.text


PROMPT = [5, 6]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_kept_does_not_depend_on_how_the_engine_joins_tokens(served, seed):
    """Of answers full of characters that several tokens spell, and of broken ones."""
    rng = random.Random(seed)
    ids = [rng.randrange(4, 384) for _ in range(30)]
    place = rng.randrange(1, 20)
    alone = served.run(kept(served, ids, [1] * len(ids), place))
    for _ in range(5):
        cuts = sorted(rng.sample(range(1, len(ids)), rng.randrange(1, 12)))
        sizes = [end - start for start, end in pairwise([0, *cuts, len(ids)])]
        assert served.run(kept(served, ids, sizes, place)) == alone


@pytest.mark.parametrize("wanted", [{}, {"detokenize": False}])
def test_each_token_waits_by_itself(served, wanted):
    from vllm.outputs import CompletionOutput

    from guard.engine.speaking import Sample

    params = served.params(**{**LONG, **wanted})
    sample = Sample(Speech(lambda *_: Found(0)), served.engine.get_tokenizer(), PROMPT, params)
    for ids in ([40, 41, 42], [43], [44, 45]):
        served.run(sample.take(CompletionOutput(0, "", ids, None, None)))
    assert [list(one.token_ids) for one, _ in sample.waiting] == [[i] for i in range(40, 46)]


def test_after_the_last_try_the_answer_ends(served, spoken):
    letters = re.compile("[a-zA-Z]")

    def look(text, begun, ended):
        found = letters.search(text, begun)
        return Found(found.start(), Hit("t", *found.span(), named=True)) if found else Found(len(text))

    served.guard.look = look
    asked = regenerating(served, tries=2)
    told = RequestContext("d1", "/v1/completions", 0.0)
    choices, finished, *_ = streamed(served, "FINAL_ONLY", told)
    assert (
        finished and choices[0][3] == "stop" and not letters.search(choices[0][0].replace(Reply().text, ""))
    )
    assert [e["action"] for e in told.events] == ["regenerate", "regenerate", "cut"] and len(asked) == 2


def test_where_no_method_can_act_the_reply_or_the_end_comes(served, spoken):
    own, wanted, start = spoken
    forbid(served, wanted)
    served.guard.policy = ("regenerate", 2)
    served.guard.follow = lambda prompt, hit: None
    told = RequestContext("d1", "/v1/completions", 0.0)
    choices, finished, *_ = streamed(served, "DELTA", told, logprobs=0)
    assert finished and choices[0][3] == "stop" and own.text[:start].startswith(choices[0][0])
    assert len(choices[0][2]) == len(choices[0][1]) and told.events[0]["action"] == "cut"


@pytest.mark.parametrize("wanted_of_it", [{"stop": ["zzzz"]}, {"n": 2, "temperature": 1.0, "seed": 3}])
def test_what_cannot_go_on_is_cut(served, spoken, wanted_of_it):
    forbid(served, *(w for w in fold(spoken[0].text).text.split(" ") if len(w) > 2))
    asked = regenerating(served)
    streamed(served, "FINAL_ONLY", **wanted_of_it)
    assert asked == []


# -- likelihoods


def test_tokens_do_not_leave_before_their_text_where_a_stop_string_is_waited_for(served, spoken):
    own, wanted, start = spoken
    literals = forbid(served, wanted)
    stop = ["a stop string that never comes, and is longer than all that is forbidden"]
    for kind in ("DELTA", "FINAL_ONLY"):
        choices, *_ = streamed(served, kind, stop=stop, logprobs=0)
        text, ids, logprobs, *_ = choices[0]
        assert text == own.text[:start] and len(logprobs) == len(ids)
        assert not literals.said_in(served.engine.get_tokenizer().decode(ids))
        assert served.engine.get_tokenizer().decode(ids) in text


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "DELTA"])
def test_no_likely_alternative_spells_what_is_forbidden(served, kind):
    """An alternative at some place is made forbidden together with the word in front of it."""
    tokenizer = served.engine.get_tokenizer()
    own = served.ask(SHORT, **LONG, logprobs=5).outputs[0]
    for i in range(3, len(own.token_ids)):
        before = tokenizer.decode(own.token_ids[:i])
        for other in own.logprobs[i]:
            spelt = fold(before[-12:] + tokenizer.decode([other])).text
            if other != own.token_ids[i] and len(spelt) > 6 and tokenizer.decode([other])[-1:].isalpha():
                literals = Literals([target("t", spelt)])
                if literals.said_in(before + tokenizer.decode([other])) and not literals.said_in(own.text):
                    forbid(served, spelt)
                    choices, *_ = streamed(served, kind, logprobs=5)
                    assert choices[0][0] == own.text
                    assert other not in choices[0][2][i] and own.token_ids[i] in choices[0][2][i]
                    return
    raise AssertionError("no alternative that could be forbidden alone")


def test_no_likely_alternative_in_the_prompt_spells_what_is_forbidden(served):
    tokenizer = served.engine.get_tokenizer()
    ids = served.prompt(SHORT)["prompt_token_ids"]
    plain = served.ask(SHORT, prompt_logprobs=3).prompt_logprobs
    i, other, spelt = next(
        (i, other, fold(text).text)
        for i in range(1, len(ids))
        for other in plain[i]
        if other != ids[i]
        and (text := tokenizer.decode([*ids[:i], other]))[-1:].isalpha()
        and not Literals([target("t", text)]).said_in(SHORT)
    )
    forbid(served, spelt)
    guarded = served.ask(SHORT, prompt_logprobs=3).prompt_logprobs
    assert other in plain[i] and other not in guarded[i] and ids[i] in guarded[i]


def test_what_is_said_by_its_meaning_is_cut_before_it_leaves(served, spoken):
    own, wanted, start = spoken

    class Judge:
        listens = True

        async def __call__(self, text, windows):
            literals = Literals([target("t", wanted)])
            said = [literals.said_in(text[w.start : w.end]) for w in windows]
            return [
                Hit("t", w.start, w.end, False, True) if s else None
                for w, s in zip(windows, said, strict=True)
            ]

    served.guard.judge = Judge()
    told = RequestContext("d1", "/v1/completions", 0.0)
    choices, *_ = streamed(served, "DELTA", told)
    said = choices[0][0]
    assert (own.text[:start].startswith(said) or said == Reply().text) and choices[0][3] == "stop"
    assert told.events[0]["said"] == "meaning"
    assert streamed(served, "FINAL_ONLY")[0][0][0] == choices[0][0]


@pytest.mark.parametrize(
    ("prompt", "said", "tools", "broken"),
    [
        ("", 'I call it. {"name": "f", "arguments": {"a', True, True),
        ("", '<tool_call>{"name": "f"}</tool_call>', True, False),
        ("", '<tool_call>{"name": "f"}', True, True),
        ("", "[f(a=1), f(", True, True),
        ("", "Braces { are nothing special where nothing is called.", False, False),
        ("", "I do not need to call anything.", True, False),
        ("", "<think>It may be that", False, True),
        ("", "<think>It may be.</think>It is", False, False),
        ("user: Who?\n<think>\n", "It may be that", False, True),
        ("user: Who?\n<think>\n", "It may be.</think>It is", False, False),
    ],
)
def test_calls_and_reasoning_that_lack_their_end_are_seen(prompt, said, tools, broken):
    assert unfinished(prompt, said, tools=tools) is broken


@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY"])
def test_a_call_cut_in_the_middle_never_looks_whole(served, spoken, kind, monkeypatch):
    _, wanted, _ = spoken
    forbid(served, wanted)
    monkeypatch.setattr("guard.engine.speaking.unfinished", lambda prompt, said, *, tools: tools)
    for tools in (True, False):
        told = RequestContext("d1", "/v1/chat/completions", 0.0, tools=tools)
        choices, *_ = streamed(served, kind, told)
        assert choices[0][3] == ("content_filter" if tools else "stop") and told.broken is tools


@pytest.mark.parametrize("policy", ["cut", "regenerate"])
def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(served, spoken, policy):
    """While text is held back, and while the answer is given again."""
    from vllm.sampling_params import RequestOutputKind

    _, wanted, _ = spoken
    if policy == "regenerate":
        forbid(served, wanted)
        regenerating(served)
    else:
        served.guard.look = lambda text, begun, ended: Found(0)

    async def leave():
        params = served.params(max_tokens=200, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        context = RequestContext("d1", "/v1/completions", 0.0)
        token = enter(context)
        answer = served.engine.generate(served.prompt(SHORT), params, "leaves")
        task = asyncio.ensure_future(anext(answer))
        if policy == "regenerate":
            while not context.events and not context.edits:
                await task
                task = asyncio.ensure_future(anext(answer))
        else:
            for _ in range(10_000):
                if served.engine.output_processor.request_states:
                    break
                await asyncio.sleep(0.001)
            assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await answer.aclose()
        leave_context(token)
        for _ in range(100):
            if not served.engine.output_processor.request_states:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the engine still works for a client that has gone")

    served.run(leave())


def test_lengths_and_stop_strings_do_not_spell_what_is_forbidden_letter_by_letter(served, spoken):
    """A client that guesses may ask for the answer up to any place, and be told which stop string has ended it."""
    own, wanted, start = spoken
    forbid(served, wanted)
    tokenizer = served.engine.get_tokenizer()
    nearly = fold(wanted).text[:-1]
    for length in range(1, len(own.token_ids)):
        choices, *_ = streamed(served, "FINAL_ONLY", max_tokens=length)
        assert nearly not in fold(choices[0][0]).text, length
    spelt = own.text[start:][: len(wanted) - 1]
    text, _, _, reason, stop = streamed(served, "FINAL_ONLY", stop=[spelt])[0][0]
    assert text == own.text[:start] and (reason, stop) == ("stop", None)
    text, _, _, reason, stop = streamed(served, "FINAL_ONLY", stop=[own.text[start : start + 1]])[0][0]
    assert stop is not None  # less than half of it is no secret
    assert tokenizer.decode(own.token_ids).startswith(text)
