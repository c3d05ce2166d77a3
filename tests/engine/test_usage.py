"""What a request's context is told of tokens and ends, from outputs as the engine gives them."""

from __future__ import annotations

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.context import RequestContext, Usage
from guard.engine.answers import Disguise
from guard.engine.calls import Call, note_usage
from guard.types import Prompt

PROMPT = Prompt("one two three", (1, 2, 3))


def output(*answers, finished=False):
    """`answers` are (token ids, reason of the end) by their number."""
    told = [
        CompletionOutput(i, "", list(ids), None, None, finish_reason=reason)
        for i, (ids, reason) in enumerate(answers)
    ]
    return RequestOutput("r", None, [1, 2, 3, 4, 5, 6], None, told, finished)


def usage(kind, *outputs, beam=False):
    context = RequestContext("d", "/v1/completions", 0.0)
    params = SamplingParams(output_kind=kind)
    disguise = Disguise.of("r", PROMPT.token_ids, params, None)
    call = Call({"type": "token"}, PROMPT, params, "r", {}, disguise, context, beam)
    for one in outputs:
        note_usage(call, one, kind)
    return context.usage


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        (RequestOutputKind.DELTA, [([7], None), ([8, 9], None), ([], "stop")]),
        (RequestOutputKind.CUMULATIVE, [([7], None), ([7, 8, 9], None), ([7, 8, 9], "stop")]),
        (RequestOutputKind.FINAL_ONLY, [([7, 8, 9], "stop")]),
    ],
)
def test_tokens_count_once_in_every_kind_of_output(kind, outputs):
    given = [output(one, finished=one[1] is not None) for one in outputs]
    assert usage(kind, *given) == Usage(3, 3, ["stop"])


def test_several_answers_have_one_prompt():
    given = output(([7], "stop"), ([8, 9], "length"), finished=True)
    assert usage(RequestOutputKind.FINAL_ONLY, given) == Usage(3, 3, ["stop", "length"])


def test_steps_of_a_beam_search_are_no_answers():
    given = output(([7], "length"), finished=True)
    assert usage(RequestOutputKind.FINAL_ONLY, given, beam=True) == Usage()
