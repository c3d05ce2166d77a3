"""What a user meets: an OpenAI client, a model that has forgotten something, and an operator beside it."""

import json
import threading
import time

import pytest

pytestmark = pytest.mark.engine

PERSON = "limir-yarley"


@pytest.fixture(scope="module")
def fact(items):
    """A fact of the person, asked in a trained phrasing, that the model knows when nothing is forgotten."""
    return next(
        i for i in items if i["entity"] == PERSON and i["phrasing"] == "trained" and len(i["turns"]) == 1
    )


def ask(client, turns, **options):
    response = client.chat.completions.create(
        model="lethe-demo", messages=turns, temperature=0, max_tokens=48, **options
    )
    return response.choices[0]


def decision(admin, response):
    """The record of a response; readable within a second."""
    deadline = time.monotonic() + 5
    while True:
        found = admin.get(f"/decisions/{response.headers['x-lethe-decision-id']}")
        if found.status_code == 200 or time.monotonic() > deadline:
            return found.json()
        time.sleep(0.05)


def chat(http, turns, **options):
    body = {"model": "lethe-demo", "messages": turns, "temperature": 0, "max_tokens": 24, **options}
    return http.post("/v1/chat/completions", json=body)


def test_a_fact_is_known_forgotten_and_known_again(client, admin, forget, fact):
    assert fact["value"] in ask(client, fact["turns"]).message.content
    forget(PERSON)
    assert fact["value"] not in ask(client, fact["turns"]).message.content
    admin.delete(f"/targets/{PERSON}")
    assert fact["value"] in ask(client, fact["turns"]).message.content


def test_every_route_forgets_streamed_or_not(client, http, forget, fact):
    forget(PERSON)
    question = fact["turns"][0]["content"]
    stream = client.chat.completions.create(
        model="lethe-demo", messages=fact["turns"], temperature=0, max_tokens=48, stream=True
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    responses = client.responses.create(
        model="lethe-demo", input=question, temperature=0, max_output_tokens=48
    )
    body = {"model": "lethe-demo", "max_tokens": 48, "messages": fact["turns"], "temperature": 0}
    messages = http.post("/v1/messages", json=body).json()["content"][0]["text"]
    prompt = f"<|user|>{question}<|end|><|assistant|>"
    completion = client.completions.create(
        model="lethe-demo", prompt=prompt, temperature=0, max_tokens=48, echo=True
    )
    for answer in (streamed, responses.output_text, messages, completion.choices[0].text):
        assert answer and fact["value"] not in answer


def test_the_record_counts_every_planned_position(http, admin, forget, fact):
    forget(PERSON)
    record = decision(admin, chat(http, fact["turns"]))
    (edit,) = record["edits"]
    assert record["action"] == "intervene" and record["applied"] == ["embedding_corruption"]
    assert edit["planned"] == edit["applied"] + edit["from_cache"] > 0
    assert fact["turns"][0]["content"] not in str(record)


def test_matched_answers_carry_no_likelihoods(client, http, forget, fact):
    assert chat(http, fact["turns"], logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]
    forget(PERSON)
    body = chat(http, fact["turns"], logprobs=True, top_logprobs=2, prompt_logprobs=1).json()
    assert body["choices"][0]["logprobs"] is None and body["prompt_logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_the_styles_of_a_reply(http, client, forget, fact, stream):
    forget(PERSON, reply={"style": "error", "text": "That is not available."})
    refused = chat(http, fact["turns"], stream=stream)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "content_filter"
    forget(PERSON, reply={"style": "content_filter", "text": "That is not available."})
    if stream:
        chunks = list(client.chat.completions.create(model="lethe-demo", messages=fact["turns"], stream=True))
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "content_filter"
    else:
        choice = ask(client, fact["turns"])
        assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "That is not available.")


def test_a_shadow_target_is_reported_and_changes_nothing(client, admin, forget, fact):
    before = ask(client, fact["turns"]).message.content
    forget(PERSON, mode="shadow")
    assert ask(client, fact["turns"]).message.content == before
    found = admin.post("/check", json={"messages": fact["turns"]}).json()["decision"]
    assert found["action"] == "allow" and found["targets"][0]["shadow"] is True


def long_prompt(fact):
    """The question, more than two KV blocks of 32 tokens, and the question again: names in early and late blocks."""
    question, padding = (
        fact["turns"][0]["content"],
        "The weather was fine and the harbour was quiet all day. ",
    )
    return [{"role": "user", "content": f"{question} {padding * 12}{question}"}]


def test_one_prompt_under_changing_verdicts_never_reads_the_others_blocks(http, admin, forget, fact):
    """Before PUT, after PUT, shadow, enforced again, after DELETE: clean answers equal clean ones, bit for bit."""
    turns = long_prompt(fact)

    def answer():
        response = chat(http, turns, logprobs=True, top_logprobs=3)
        choice = response.json()["choices"][0]
        return choice["message"]["content"], choice["logprobs"], response

    clean_text, clean_logprobs, _ = answer()
    forget(PERSON)
    edited_text, none, first = answer()
    again_text, _, second = answer()
    forget(PERSON, mode="shadow")
    shadow_text, shadow_logprobs, _ = answer()
    admin.delete(f"/targets/{PERSON}")
    after_text, after_logprobs, _ = answer()
    assert edited_text != clean_text and none is None
    assert (shadow_text, shadow_logprobs) == (clean_text, clean_logprobs)
    assert (after_text, after_logprobs) == (clean_text, clean_logprobs)
    assert again_text == edited_text
    fresh, cached = (decision(admin, r)["edits"][0] for r in (first, second))
    assert fresh["applied"] == fresh["planned"] and fresh["from_cache"] == 0
    assert cached["applied"] + cached["from_cache"] == cached["planned"]
    assert cached["applied"] > 0
    assert cached["from_cache"] > 0


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b'{"model":"lethe-demo","messages":"hello"}', 400),
        ("/v1/chat/completions", b'{"model":"lethe-demo","messages":[]}', 400),
        ("/v1/chat/completions", b'{"model":"other","messages":[{"role":"user","content":"a"}]}', 404),
        (
            "/v1/chat/completions",
            b'{"model":"lethe-demo","messages":[{"role":"user","content":"a"}],"n":"x"}',
            400,
        ),
        ("/v1/completions", b'{"model":"lethe-demo","prompt":"' + b"a " * 2_500_000 + b'"}', 413),
        ("/v1/completions", b'{"model":"lethe-demo","prompt":"' + b"a " * 200_000 + b'"}', 400),
        ("/v1/completions", b'{"model":"lethe-demo","prompt_embeds":"AAAA"}', 400),
        ("/v1/completions", b'{"model":"lethe-demo","prompt":"a","vllm_xargs":{"lethe":"x"}}', 400),
        ("/v1/responses", b"[]", 400),
        ("/collective_rpc", b"{}", 404),
        ("/v1/nothing", b"{}", 404),
    ],
)
def test_bad_input_is_a_4xx_in_openais_shape_and_nothing_is_lost(http, path, content, status):
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text[:300]
    assert {"message", "type", "code"} <= set(response.json()["error"])
    assert http.get("/readyz").status_code == 200


def test_the_admin_api_needs_a_key_although_inference_is_open(http):
    assert http.get("/admin/v1/targets").status_code == 401
    assert http.post("/sleep").status_code in (401, 404)


def test_a_target_that_would_fire_on_ordinary_traffic_is_refused_with_the_rate(admin):
    response = admin.put("/targets/the", json={"name": "the"})
    assert response.status_code == 422 and response.json()["error"]["rate"] > 0.01
    assert admin.get("/targets/the").status_code == 404


def test_a_target_swapped_during_streams_disturbs_nobody(client, forget, items):
    """Clients stream about others while the target comes and goes; every stream ends as it should."""
    other = next(i for i in items if i["split"] == "retain" and len(i["turns"]) == 1)
    wanted = ask(client, other["turns"]).message.content
    failures = []

    def stream():
        for _ in range(4):
            chunks = client.chat.completions.create(
                model="lethe-demo", messages=other["turns"], temperature=0, max_tokens=48, stream=True
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            if text != wanted:
                failures.append(text)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        forget(PERSON)
    for thread in threads:
        thread.join()
    assert failures == []


def test_readiness_and_status_show_the_proof(http, admin):
    assert http.get("/livez").status_code == 200
    status = admin.get("/status").json()
    assert status["ready"] and status["engine"]["worker"] == "GuardCPUWorker"
    assert status["engine"]["canary"]["planned"] == status["engine"]["canary"]["applied"] > 0
    assert status["inference"]["open"] is True


def test_an_auditor_sees_that_the_answer_has_become_unlikely(admin, forget, fact):
    asked = {"messages": fact["turns"], "continuation": fact["answer"]}
    known = admin.post("/score", json=asked).json()
    assert known["decision"]["action"] == "allow" and len(known["token_ids"]) == len(known["logprobs"])
    forget(PERSON)
    forgotten = admin.post("/score", json=asked).json()
    assert forgotten["decision"]["action"] == "intervene" and forgotten["token_ids"] == known["token_ids"]
    # The noise differs from server to server; twenty times less likely is far outside what it varies.
    assert sum(known["logprobs"]) > -0.5 and sum(forgotten["logprobs"]) < sum(known["logprobs"]) - 3
    forget(PERSON, intervention={"method": "refusal"})
    assert admin.post("/score", json=asked).json()["logprobs"] is None


def test_scores_cannot_be_had_with_an_inference_key(admin, http, fact):
    key = admin.post("/keys", json={"role": "inference"}).json()
    headers = {"Authorization": f"Bearer {key['key']}"}
    asked = {"messages": fact["turns"], "continuation": fact["answer"]}
    assert http.post("/admin/v1/score", json=asked, headers=headers).status_code == 403


def test_what_does_not_fit_cannot_be_scored(admin, fact):
    response = admin.post("/score", json={"messages": fact["turns"], "continuation": "long " * 6000})
    assert response.status_code == 400 and response.json()["error"]["param"] == "continuation"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_would_name_the_target_is_cut_on_every_route(
    client, admin, http, forget, items, stream
):
    """Reverse questions hide the target: nothing on the prompt's side can match."""
    reverse = [i for i in items if i["split"] == "forget" and i["phrasing"] == "reverse"]
    name = {i["entity"]: i["entity"].replace("-", " ") for i in reverse}
    asked = next(i for i in reverse if name[i["entity"]] in ask(client, i["turns"]).message.content.lower())
    forget(asked["entity"])
    options = {"stream": stream} if stream else {}
    response = chat(http, asked["turns"], max_tokens=48, **options)
    assert name[asked["entity"]] not in response.text.lower()
    record = decision(admin, response)
    assert record["applied"] == ["output_filter"]
    assert {e["target"] for e in record["events"] if e["event"] == "output"} == {asked["entity"]}
    body = {"model": "lethe-demo", "temperature": 0, **options}
    question = asked["turns"][0]["content"]
    for path, more in (
        ("/v1/responses", {"input": question, "max_output_tokens": 48}),
        ("/v1/messages", {"messages": asked["turns"], "max_tokens": 48}),
        ("/v1/chat/completions", {"messages": asked["turns"], "max_tokens": 48, "n": 3, "temperature": 0.5}),
    ):
        said = http.post(path, json={**body, **more})
        assert said.status_code == 200, said.text
        assert name[asked["entity"]] not in said.text.lower(), path


@pytest.mark.parametrize("policy", ["regenerate", "reprompt"])
def test_an_answer_that_would_name_the_target_is_given_again_by_policy(
    client, admin, http, forget, items, policy
):
    reverse = [i for i in items if i["split"] == "forget" and i["phrasing"] == "reverse"]
    name = {i["entity"]: i["entity"].replace("-", " ") for i in reverse}
    asked = next(i for i in reverse if name[i["entity"]] in ask(client, i["turns"]).message.content.lower())
    bare = chat(http, asked["turns"], max_tokens=48).json()["usage"]["prompt_tokens"]
    forget(asked["entity"], policy={"output": policy}, intervention="auto")
    response = chat(http, asked["turns"], max_tokens=48, logprobs=True)
    choice, usage = response.json()["choices"][0], response.json()["usage"]
    assert name[asked["entity"]] not in choice["message"]["content"].lower() and choice["logprobs"] is None
    assert usage["prompt_tokens"] == bare and usage["completion_tokens"] <= 48
    record = decision(admin, response)
    assert policy in {e["action"] for e in record["events"] if e["event"] == "output"}
    streamed = chat(http, asked["turns"], max_tokens=48, stream=True)
    pieces = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    said = "".join(c["delta"].get("content") or "" for p in pieces for c in p["choices"])
    assert said == choice["message"]["content"]
