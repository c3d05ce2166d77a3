"""What the policy `withhold` promises: of a request that matched, no route gives a likelihood, whatever it asks for."""

import json

import pytest

from server.routes import TABLE

pytestmark = pytest.mark.engine

PERSON = "limir-yarley"
LIKELIHOOD = ("logprob", "token_ids", "logits")
"""Parts of the names of fields that hold likelihoods, or ids and ranks that tell of them."""

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASKED = {
    (CHAT, "chat"): {"logprobs": True, "top_logprobs": 3},
    (CHAT, "the client's own tokens"): {"logprobs": True, "prompt_logprobs": 2},
    (CHAT, "three choices"): {"logprobs": True, "top_logprobs": 3, "n": 3, "temperature": 0.7},
    (CHAT, "the request's tokens as ids"): {"logprobs": True, "return_tokens_as_token_ids": True},
    (CHAT, "beams"): {"logprobs": True, "use_beam_search": True, "n": 2},
    (CHAT, "a stream"): {"logprobs": True, "top_logprobs": 3, "stream": True},
    (CHAT, "structured"): {
        "logprobs": True,
        "top_logprobs": 3,
        "structured_outputs": {"choice": ["yes", "no"]},
    },
    (COMPLETION, "completion"): {"logprobs": 3},
    (COMPLETION, "echo"): {"logprobs": 3, "echo": True},
    (COMPLETION, "echo of the prompt alone"): {"logprobs": 3, "echo": True, "max_tokens": 0},
    (COMPLETION, "prompt"): {"logprobs": 1, "prompt_logprobs": 3},
    (COMPLETION, "a stream"): {"logprobs": 3, "stream": True},
    (COMPLETION, "beams"): {"logprobs": 3, "use_beam_search": True, "n": 2},
    (RESPONSE, "response"): {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
    (RESPONSE, "a stream"): {"top_logprobs": 3, "include": ["message.output_text.logprobs"], "stream": True},
    ("/v1/chat/completions/batch", "batch"): {"logprobs": True, "top_logprobs": 3},
}
WITHOUT = {"/v1/messages"}
"""Routes that generate and have no field for likelihoods."""


def body_of(path, question, options):
    turns = [{"role": "user", "content": question}]
    own = {
        CHAT: {"messages": turns},
        "/v1/chat/completions/batch": {"messages": [turns, turns]},
        COMPLETION: {"prompt": f"<|user|>{question}<|end|><|assistant|>"},
        RESPONSE: {"input": question},
        "/v1/messages": {"messages": turns},
    }[path]
    length = "max_output_tokens" if path == RESPONSE else "max_tokens"
    return {"model": "lethe-demo", length: 24, "temperature": 0, **own, **options}


def objects(response):
    """The JSON objects of an answer, or of each event of a streamed one."""
    if "text/event-stream" not in response.headers["content-type"]:
        return [response.json()]
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def likelihoods(value, path=""):
    """Where in a JSON value a likelihood stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}"
            if any(part in key for part in LIKELIHOOD) and _says(inner):
                yield here
            else:
                yield from likelihoods(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from likelihoods(inner, f"{path}[]")


def _says(value):
    """Whether there is a number in it that is not of the request itself."""
    if isinstance(value, dict):
        return any(map(_says, value.values()))
    if isinstance(value, list):
        return any(map(_says, value))
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))


def found(http, path, question, options):
    response = http.post(path, json=body_of(path, question, options))
    assert response.status_code == 200, response.text
    answers = objects(response)
    assert answers
    return {place for answer in answers for place in likelihoods(_answered(answer))}


def _answered(answer):
    """The answer without what the API repeats of the request, as responses do."""
    inner = answer.get("response", answer)
    kept = {key: value for key, value in inner.items() if key not in ("top_logprobs", "usage")}
    return {**answer, "response": kept} if "response" in answer else kept


@pytest.fixture(scope="module")
def fact(items):
    return next(
        i for i in items if i["entity"] == PERSON and i["phrasing"] == "trained" and len(i["turns"]) == 1
    )["turns"][0]["content"]


@pytest.fixture(scope="module")
def hidden(http, items, targets):
    """A question that does not name the target whose name is its answer."""
    for item in items:
        if item["split"] == "forget" and item["phrasing"] == "reverse":
            said = http.post(CHAT, json=body_of(CHAT, item["turns"][0]["content"], {"max_tokens": 48}))
            name = targets[item["entity"]]["name"].lower()
            if name in said.json()["choices"][0]["message"]["content"].lower():
                return item["entity"], item["turns"][0]["content"]
    raise AssertionError("the demo model answers none of its reverse questions")


def test_every_route_that_generates_is_asked(http):
    generating = {route.path for route in TABLE if route.generates}
    asked = {path for path, _ in ASKED} | WITHOUT
    assert asked <= generating
    for path in generating - asked:  # pooling routes, which this model does not have
        assert http.post(path, json={"model": "lethe-demo", "input": "a"}).status_code == 404, path


@pytest.mark.parametrize(("path", "form"), ASKED, ids=lambda part: part)
def test_a_matched_request_is_given_no_likelihood(http, forget, fact, path, form):
    options = ASKED[path, form]
    assert found(http, path, fact, options), "an unmatched request is given some: else nothing is shown here"
    forget(PERSON)
    assert found(http, path, fact, options) == set()


@pytest.mark.parametrize(("path", "form"), ASKED, ids=lambda part: part)
def test_a_refused_request_is_given_no_likelihood(http, forget, fact, path, form):
    forget(PERSON, intervention={"method": "refusal"})
    assert found(http, path, fact, ASKED[path, form]) == set()


@pytest.mark.parametrize("options", [{}, {"n": 2, "temperature": 0.5}], ids=["one choice", "two choices"])
def test_an_answer_that_shows_a_target_is_given_no_likelihood(http, forget, hidden, options):
    """The prompt gave no reason to withhold; what was sent before the answer did is of an answer like any other."""
    entity, question = hidden
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 48, **options}
    assert found(http, CHAT, question, asked)
    forget(entity)
    assert found(http, CHAT, question, asked) == set()


def test_who_dictates_the_answer_is_told_no_likelihood_of_an_edited_model(http, forget, fact):
    forget(PERSON, policy={"logprobs": "edited"})
    asked = {"logprobs": True, "top_logprobs": 3}
    assert found(http, CHAT, fact, asked)
    dictated = {"structured_outputs": {"choice": ["Limir Yarley lives in Vintry.", "I do not know."]}}
    assert found(http, CHAT, fact, {**asked, **dictated}) == set()


def test_messages_have_no_field_for_them(http, forget, fact):
    for path in WITHOUT:
        assert found(http, path, fact, {"top_logprobs": 3, "logprobs": True}) == set()
        forget(PERSON)
        assert found(http, path, fact, {"top_logprobs": 3, "logprobs": True}) == set()
