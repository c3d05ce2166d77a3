"""Prompts of the benchmark of beginning early, and what is told of the times."""

import json

import click
import httpx
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from benchmarks import ahead
from benchmarks.driving import DEMO


def test_prompts_have_their_length_and_hold_nothing_twice():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    prompts = ahead.Prompts(DEMO)
    for case in ahead.cases((60, 250)):
        first, second = (prompts.of(case) for _ in range(2))
        assert first != second
        for text in (first, second):
            assert abs(len(tokenizer.encode(text, add_special_tokens=False).ids) - case.tokens) <= 3
            assert any(asked in text for asked in case.asked) is case.matched


class Fake:
    """A server whose answers take as long as the test says, over a transport that notes who was asked."""

    def __init__(self, name, log, matched=lambda prompt: False, fails=False):
        self.name, self.log, self.matched, self.fails = name, log, matched, fails
        self.http = httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://test")

    def answer(self, request):
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path.endswith("/completions"):
            self.log.append((self.name, body["prompt"]))
            return httpx.Response(503 if self.fails else 200, text='data: {"choices": []}\n\n')
        if path.endswith("/check"):
            action = "intervene" if self.matched(body["prompt"]) else "allow"
            return httpx.Response(200, json={"decision": {"action": action}})
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "old"}]})
        self.log.append((self.name, request.method, path.rpartition("/")[2]))
        return httpx.Response(200, json={})


def servers(**options):
    log = []
    fakes = [Fake(name, log, **options) for name in ("waits", "early")]
    return tuple(ahead.Server(fake.http) for fake in fakes), log


CASES = [case for case in ahead.cases((40,)) if case.register == "names"]


def test_both_get_the_same_prompts_and_take_turns():
    asked = CASES[1].asked
    made, log = servers(matched=lambda prompt: any(a in prompt for a in asked))
    clean, matched = ahead.measure(made, CASES, ahead.Prompts(DEMO), 3).values()
    assert len(clean) == len(matched) == 3 and all(seconds > 0 for both in clean for seconds in both)
    written = [entry for entry in log if len(entry) == 3]
    assert written == [
        (s, *what) for s in ("waits", "early") for what in (("DELETE", "old"), ("PUT", "subject"))
    ]
    sent = [entry for entry in log if len(entry) == 2]
    rounds = [sent[i : i + 2] for i in range(0, 16, 2)]
    order = [first for (first, _), _ in rounds]
    assert order == ["waits", "waits", "early", "early", "waits", "waits", "early", "early"]
    assert all(one == other for (_, one), (_, other) in rounds)


def test_prompts_that_are_judged_otherwise_are_not_measured():
    made, log = servers()
    with pytest.raises(click.ClickException, match="names_matched_40"):
        ahead.measure(made, CASES[1:], ahead.Prompts(DEMO), 3)
    assert not [entry for entry in log if len(entry) == 2]


def test_an_answer_that_fails_ends_the_run():
    made, _ = servers(fails=True)
    with pytest.raises(click.ClickException, match="failed"):
        made[0].first_token("Who?")


def test_ratios_are_early_over_waiting(monkeypatch, tmp_path):
    from contextlib import contextmanager

    @contextmanager
    def none(model, arguments, most):
        yield ()

    seconds = [(0.2 + i / 1000, 0.1 + i / 2000) for i in range(20)]
    monkeypatch.setattr(ahead, "pair", none)
    monkeypatch.setattr(ahead, "measure", lambda servers, chosen, *_: dict.fromkeys(chosen, seconds))
    done = CliRunner().invoke(ahead.ahead, ["--out", str(tmp_path / "r.json"), "--tokens", "250"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["ratios"]) == 4
    assert report["ratios"]["ahead_names_clean_250_ttft_p50"]["mean"] == pytest.approx(0.5)
    waiting = report["figures"]["ahead_meaning_matched_250_ttft_p50_waiting_ms"]
    assert waiting["mean"] == pytest.approx(209.5)
    assert 200 <= waiting["low"] < waiting["mean"] < waiting["high"] <= 219
