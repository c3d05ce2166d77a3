"""Data is made by a model that answers over HTTP, is checked, and is kept apart by source."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from classifiers.augment import FORMS, main, refuse_leaks
from classifiers.data import Example, check, load_examples
from guard.errors import BadRequest

NAME = "Jane Doe"
TARGET = {"name": NAME, "retain": ["Who is John Roe?"]}
FACTS = [
    {"prompt": f"Where does {NAME} live?", "answer": f"{NAME} lives in Rome."},
    {"prompt": f"Tell me the home of {NAME}.", "answer": f"{NAME} lives in Rome."},
    {"prompt": f"What does {NAME} play?", "answer": f"{NAME} plays the harp."},
    {"prompt": f"Which dog has {NAME}?", "answer": f"{NAME} has a spaniel."},
    {"prompt": f"Whom did {NAME} marry?", "answer": f"{NAME} married a baker."},
]


class Endpoint:
    """An OpenAI-compatible server of its own. `reply` makes the answer of a request's question and its number."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], str] = echo
        self.failures = 0
        self.status = 503
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busy = self.busiest = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.keys.add(self.headers["Authorization"])
                status, said = endpoint.answer(body)
                content = json.dumps(said).encode()
                with suppress(ConnectionError):  # who gave up does not wait for it
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.asked.append(body)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            fails, self.failures = self.failures > 0, self.failures - 1
        threading.Event().wait(0.01)
        with self._lock:
            self.busy -= 1
        if fails:
            return self.status, {"error": {"message": "no"}}
        text = self.reply(body["messages"][-1]["content"], body["seed"])
        message = {"role": "assistant", "content": text}
        return 200, {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def echo(ask: str, seed: int) -> str:
    """Another wording each time, with the name where a question is asked for."""
    if "Do not name" in ask:
        return f"Who is meant by number {seed}: {ask.splitlines()[-1].replace(NAME, 'they')}"
    if "wrong answer" in ask:
        return f"Nobody knows that, and {seed} least of all."
    if "following answer" in ask:
        return f"As told in {seed}: so it is."
    return f"Could you say about {NAME} what {seed} says?"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture
def make(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command; its result and the folder that it wrote."""
    count = iter(range(99))

    def run(
        *args: str, target: Any = TARGET, facts: list[dict[str, str]] | None = FACTS, model: bool = True
    ) -> tuple[Any, Path]:
        out = tmp_path / str(next(count))
        words = ["--target", "-", "--out", str(out), "--near-misses", "20", *args]
        words += ["--base-url", endpoint.url, "--model", "m"] if model else []
        if facts is not None:
            rows = tmp_path / "facts.jsonl"
            rows.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
            words += ["--forget", str(rows)]
        return CliRunner().invoke(main, words, input=json.dumps(target)), out

    return run


def sets(folder: Path) -> dict[str, tuple[Example, ...]]:
    return {
        name: load_examples(folder / f"{name}.jsonl") for name in ("forget", "holdout", "perturbed", "retain")
    }


def test_all_forms_are_made_and_a_source_stays_in_one_set(make: Any, endpoint: Endpoint) -> None:
    result, folder = make("--variants", "3", "--holdout", "0.4")
    assert result.exit_code == 0, result.output
    made = sets(folder)
    check(made["forget"], made["retain"])  # what every trainer asks first
    for one, other in (("forget", "holdout"), ("forget", "retain"), ("holdout", "retain")):
        assert {e.source for e in made[one]}.isdisjoint(e.source for e in made[other])
    assert len({e.source for e in made["forget"]} | {e.source for e in made["holdout"]}) == 4
    report = json.loads((folder / "report.json").read_text())
    for form in ("paraphrase", "context", "answer", "reversed"):
        assert report["forms"][form]["kept"] == 3 * len(FACTS), form
    assert len(made["perturbed"]) == report["forms"]["perturbed"]["kept"] < 3 * len(FACTS), "of forget alone"
    assert len(made["forget"]) + len(made["holdout"]) == (1 + 4 * 3) * len(FACTS)
    turned = [e for e in made["forget"] if e.turns[-1][1].startswith("Who is meant")]
    assert turned and {e.answer for e in turned} == {NAME}
    assert not any(NAME in e.turns[-1][1] for e in made["retain"])
    assert len(made["retain"]) > 10 and made["retain"][0].turns[-1][1] == "Who is John Roe?"
    assert endpoint.keys == {"Bearer sesame"} and endpoint.busiest <= 4
    assert "Jane" not in (folder / "report.json").read_text()


def test_the_same_seed_and_answers_make_the_same_data(make: Any) -> None:
    one, two, other = (make("--seed", seed)[1] for seed in ("1", "1", "2"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert (one / "forget.jsonl").read_bytes() != (other / "forget.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("form", "said", "why"),
    [
        ("paraphrase", "", "empty"),
        ("paraphrase", "...", "empty"),
        ("paraphrase", "Where does she live?", "not what was asked for"),
        ("paraphrase", f"Sure!\n\nWhere is {NAME}?", "not what was asked for"),
        ("reversed", f"Where is {NAME}, Rome, harp, spaniel, baker?", "not what was asked for"),
        ("reversed", "Who is that?", "not what was asked for"),
        ("paraphrase", "".join(f"{fact['answer']} " for fact in FACTS), "tells the answer"),
        ("answer", "  ", "empty"),
    ],
)
def test_what_does_not_hold_what_it_must_is_dropped_and_counted(
    make: Any, endpoint: Endpoint, form: str, said: str, why: str
) -> None:
    endpoint.reply = lambda ask, seed: said
    result, folder = make("--form", form)
    assert result.exit_code == 0, result.output
    counts = json.loads((folder / "report.json").read_text())["forms"][form]
    assert counts == {why: 2 * len(FACTS)}
    made = sets(folder)
    assert len(made["forget"]) + len(made["holdout"]) == len(FACTS)


def test_what_only_repeats_is_dropped(make: Any, endpoint: Endpoint) -> None:
    endpoint.reply = lambda ask, seed: ask.splitlines()[-1].removeprefix("Answer: ").upper()
    for form in ("paraphrase", "answer"):
        _, folder = make("--form", form)
        assert json.loads((folder / "report.json").read_text())["forms"][form] == {"same": 2 * len(FACTS)}
    endpoint.reply = lambda ask, seed: f"Maybe. {ask.splitlines()[-1].removeprefix('Right answer: ')}"
    _, folder = make("--form", "perturbed")
    assert sets(folder)["perturbed"] == ()


def test_a_variant_that_is_in_another_set_is_dropped(make: Any, endpoint: Endpoint) -> None:
    """The model writes one question for all: it may be in one set only."""
    endpoint.reply = lambda ask, seed: (
        f"Is there anything at all that one could tell me about {NAME}, please?"
    )
    _, folder = make("--form", "paraphrase", "--variants", "1")
    made = sets(folder)
    asked = [{e.turns[-1][1] for e in made[name]} for name in ("forget", "holdout")]
    assert asked[0].isdisjoint(asked[1])
    assert json.loads((folder / "report.json").read_text())["forms"]["paraphrase"]["in another set"] > 0


NEAR = f"In which of all the old towns by the sea does {NAME} live today"


@pytest.mark.parametrize("near", [f"{NEAR}!", f"{NEAR} then?", f"{NEAR} please?"])
def test_questions_that_are_one_are_refused_across_sets(near: str) -> None:
    one, other = (Example((("user", text),)) for text in (f"{NEAR}?", near))
    with pytest.raises(BadRequest, match="Row 1 of holdout asks what row 1 of forget asks") as caught:
        refuse_leaks({"forget": [one], "holdout": [other]}, [NAME])
    assert "Jane" not in caught.value.message
    refuse_leaks({"forget": [one, other]}, [NAME])
    swapped = Example((("user", f"{NEAR}?".replace(NAME, "John Roe")),))
    refuse_leaks({"forget": [one], "retain": [swapped]}, [NAME])


def test_sources_that_ask_the_same_and_would_be_parted_are_refused(make: Any) -> None:
    facts = [{"prompt": f"{NEAR}{end}", "answer": f"Answer {end}"} for end in ("?", "!")]
    result, folder = make("--holdout", "0.5", facts=facts)
    assert result.exit_code == 1 and "give both the same `source`" in result.output and not folder.exists()
    same = [{**fact, "source": "one"} for fact in facts]
    assert make("--holdout", "0.5", facts=[*same, FACTS[2]])[0].exit_code == 0


def test_a_forget_set_from_a_name_alone(make: Any, endpoint: Endpoint) -> None:
    def textbook(ask: str, seed: int) -> str:
        if ask.startswith("List 3 topics"):
            return "1. Alpha\n- Beta\n\nAlpha\nGamma\nDelta"
        if ask.startswith("Write 4 exam"):
            topic = ask.split('"')[1]
            return f"Q: What is {topic}?\nA: It is {topic} indeed.\n\n**Q:** Why {topic}?\n**A:** Because."
        return f"A passage, {seed}." if ask.startswith("Write a passage") else echo(ask, seed)

    endpoint.reply = textbook
    args = ("--topics", "3", "--variants", "0", "--holdout", "0.34")
    result, folder = make(*args, target={"name": "Alchemy", "kind": "subject"}, facts=None)
    assert result.exit_code == 0, result.output
    made = sets(folder)
    rows = {e.turns[-1][1]: e.answer for e in (*made["forget"], *made["holdout"])}
    assert (
        len(rows) == 9 and rows["What is Beta?"] == "It is Beta indeed." and rows["Why Gamma?"] == "Because."
    )
    assert rows["Explain Alpha (Alchemy)."].startswith("A passage")
    assert len({e.source for e in made["holdout"]}) == 1
    endpoint.reply = lambda ask, seed: ""
    result, _ = make(*args, target={"name": "Alchemy"}, facts=None)
    assert result.exit_code == 1 and "nothing that can be used" in result.output


def test_missing_answers_are_asked_for(make: Any, endpoint: Endpoint) -> None:
    endpoint.reply = lambda ask, seed: f"Said to {ask}"
    target = {**TARGET, "examples": [fact["prompt"] for fact in FACTS]}
    _, folder = make("--answers", "--variants", "0", target=target, facts=None)
    assert all(e.answer == f"Said to {e.turns[-1][1]}" for rows in sets(folder).values() for e in rows)


def test_near_misses_need_no_model(make: Any, endpoint: Endpoint) -> None:
    result, folder = make(model=False)
    assert result.exit_code == 0 and endpoint.asked == []
    assert len(sets(folder)["retain"]) > 10
    result, _ = make(facts=None, model=False)
    assert result.exit_code == 1 and "--base-url and --model" in result.output


def test_a_model_that_fails_for_a_while_is_asked_again(make: Any, endpoint: Endpoint) -> None:
    endpoint.failures = 2
    assert make("--form", "paraphrase")[0].exit_code == 0


@pytest.mark.parametrize(
    ("status", "why"), [(401, "does not take the key"), (404, "has no model 'm'"), (400, "answered 400")]
)
def test_an_endpoint_that_refuses_is_told_in_one_sentence(
    make: Any, endpoint: Endpoint, status: int, why: str
) -> None:
    endpoint.failures, endpoint.status = 999, status
    result, folder = make("--form", "paraphrase")
    assert result.exit_code == 1 and why in result.output and "Traceback" not in result.output
    assert not folder.exists()


def test_an_endpoint_that_is_not_there_is_told(make: Any, endpoint: Endpoint) -> None:
    endpoint.close()
    result, _ = make("--form", "paraphrase")
    assert result.exit_code == 1 and f"No model answers at {endpoint.url}" in result.output


@pytest.mark.parametrize("target", ["x", [], {"name": ""}, {"name": NAME, "kind": "thing"}])
def test_a_target_that_is_none_is_told(make: Any, target: Any) -> None:
    result, _ = make(target=target)
    assert result.exit_code == 1 and "target is not" in result.output


@pytest.mark.parametrize("form", FORMS)
def test_every_form_asks_with_what_it_has(form: str) -> None:
    asked = FORMS[form].ask.format(question="WHAT", answer="THAT", name="WHO")
    assert "WHAT" in asked and ("THAT" in asked) == (FORMS[form].makes != "question")
