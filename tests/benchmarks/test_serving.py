"""How requests are laid on the two that are compared, what is registered meanwhile, and which ratios are told."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import serving
from benchmarks.driving import Block, Load, Meter, Server, Setup, Side, mixed, paired
from benchmarks.register import people
from benchmarks.serving import APART, CONDITIONS, Condition, chosen, measure, row, sides, wanted_targets
from evals import serve
from evals.items import Item
from guard.targets import TargetSpec

LOAD = Load(requests=20, concurrency=4, rate=None, tokens=8, rounds=3)


def item(split, number):
    turns = (("user", f"{split} {number}"),)
    return Item(f"{split}-{number}", "e", split, "trained", turns, "an answer", "v")


SHOWN = Item("forget-shown", "ruwen-grisquist", "forget", "trained", (("user", "forget shown"),), "a", "v")


ITEMS = [item(split, n) for split in ("forget", "retain", "chat", "other") for n in range(7)] + [SHOWN]


def block(scale=1.0, requests=20):
    first = tuple(0.1 * scale + 0.1 for _ in range(requests))
    gaps = tuple(0.01 * scale for _ in range(requests))
    return Block(2.0 * scale, 160, first, gaps, gaps, scale, int(1e9 * scale))


class FakeServer:
    """Answers with a block that takes `scale` times as long as bare vLLM's."""

    def __init__(self, name, scale, log):
        self.base_url, self.key, self.scale, self.log = name, None, scale, log

    def drive(self, prompts, load, seed):
        self.log.append((self.base_url, [turns[-1]["content"] for turns in prompts], seed, load.rate))
        return replace(
            block(self.scale, len(prompts)), acted=sum("forget" in p[-1]["content"] for p in prompts)
        )


def named(name):
    return next(c for c in CONDITIONS if c.name == name)


@pytest.fixture
def both(monkeypatch):
    async def nothing(server, condition):
        pass

    monkeypatch.setattr(serving, "register", nothing)
    log = []
    return FakeServer("bare", 1.0, log), FakeServer("guarded", 2.0, log), log


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.1, 10), (1.0, 100)])
def test_the_share_of_matched_prompts_is_exact_and_spread(share, count):
    texts = [turns[-1]["content"] for turns in mixed(ITEMS, share, 100)(0)]
    about = [i for i, text in enumerate(texts) if "forget" in text]
    assert len(about) == count
    if count == 10:
        assert set(np.diff(about)) == {10}
    assert not [text for text in texts if "other" in text]


def test_no_prompt_comes_twice():
    prompts = mixed(ITEMS, 0.1, 50)
    asked = [turns[-1]["content"] for number in range(-1, 9) for turns in prompts(number)]
    assert len({*asked}) == len(asked) == 500
    assert prompts(1) == prompts(1)
    assert not {*asked} & {turns[-1]["content"] for turns in mixed(ITEMS, 0.1, 50, APART)(0)}


def test_both_get_the_same_requests_and_take_turns_in_going_first(both):
    bare, guarded, log = both
    prompts = mixed(ITEMS, 0.1, LOAD.requests)
    pairs = list(paired(Side(bare, prompts), Side(guarded, prompts), LOAD))
    assert len(pairs) == LOAD.rounds  # the first, which warms both, is not counted
    assert all(first.seconds < second.seconds for first, second in pairs)
    rounds = [log[i : i + 2] for i in range(0, len(log), 2)]
    assert len(rounds) == LOAD.rounds + 1
    for one, other in rounds:
        assert one[1:] == other[1:] and one[0] != other[0]
    assert [one[0] for one, _ in rounds] == ["bare", "guarded", "bare", "guarded"]


def test_ratios_are_guarded_over_bare(both):
    bare, guarded, _ = both
    ((condition, load, pairs),) = measure(bare, guarded, ITEMS, LOAD, [(2, named("matched_10"))])
    ratios = row("", "demo", condition, load, pairs).ratios
    assert ratios["matched_10_throughput"].mean == 0.5
    for name in ("tpot", "itl_p99", "cpu_per_token", "memory"):
        assert ratios[f"matched_10_{name}"].mean == pytest.approx(2.0)
    assert ratios["matched_10_throughput"].n == LOAD.rounds
    assert ratios["matched_10_ttft_p50"].n == LOAD.rounds * LOAD.requests
    assert ratios["matched_10_ttft_p50"].mean == pytest.approx(1.5)  # a half of it is the same


def test_a_row_tells_what_was_acted_upon_and_how_first_tokens_are_spread(both):
    bare, guarded, _ = both
    (found,) = measure(bare, guarded, ITEMS, LOAD, [(2, named("matched_10"))])
    told = row("half_billion_", "half-billion", *found)
    assert told.name == "half_billion_matched_10" and "half_billion_matched_10_throughput" in told.ratios
    assert told.about["acted_upon"] == pytest.approx(0.1)
    assert told.first_tokens["first"] == pytest.approx([1.0] * 6)
    assert told.first_tokens["second"] == pytest.approx([1.5] * 6)


def test_a_methods_cost_is_that_over_the_same_server_with_other_prompts(both):
    bare, guarded, _ = both
    one, other = sides(bare, guarded, named("matched_10_sae_clamp"), ITEMS, LOAD, 0)
    assert one.server is other.server is guarded
    asked = [[turns[-1]["content"] for turns in side.prompts(0)] for side in (one, other)]
    assert not {*asked[0]} & {*asked[1]}
    assert not any("forget" in text for text in asked[0])
    assert sum("forget" in text for text in asked[1]) == 2
    assert all("shown" in text for text in asked[1] if "forget" in text)  # only what that target is about


def test_an_open_loop_gets_a_share_of_what_bare_vllm_takes(both):
    bare, guarded, log = both
    ((_, load, _),) = measure(bare, guarded, ITEMS, LOAD, [(0, named("open_unmatched"))])
    assert (load.rate, load.concurrency) == (pytest.approx(0.6 * LOAD.requests / 2.0), None)
    assert [name for name, *_ in log[:2]] == ["bare", "bare"]  # how much that is
    assert {rate for *_, rate in log[2:]} == {load.rate}
    ((_, load, _),) = measure(bare, guarded, ITEMS, replace(LOAD, rate=3), [(0, named("open_unmatched"))])
    assert load.rate == 3
    ((_, load, _),) = measure(bare, guarded, ITEMS, replace(LOAD, rate=3), [(0, named("unmatched"))])
    assert load.rate is None


def test_a_server_is_measured_with_all_its_processes():
    port = serve.free_port()
    program = (
        "import os, sys, threading\n"
        "from http.server import HTTPServer, SimpleHTTPRequestHandler\n"
        "if os.fork() == 0:\n    block = b'x' * 200_000_000; threading.Event().wait(60); sys.exit()\n"
        f"HTTPServer(('127.0.0.1', {port}), SimpleHTTPRequestHandler).serve_forever()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        serve._wait(running, url, None, 30)
        meter = Meter.of(url)
        assert meter.group == running.pid
        ends = time.monotonic() + 30
        while meter.read()[1] < 200_000_000:  # which only the child has
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert meter.read()[0] > 0
    finally:
        os.killpg(running.pid, 9)
        running.wait(10)


@pytest.mark.parametrize(("mean", "code"), [(0.99, 0), (0.5, 1)])
def test_the_command_writes_a_report_and_fails_where_it_is_worse(monkeypatch, tmp_path, mean, code):
    started = []

    @contextmanager
    def none(model, arguments, setup):
        started.append(setup)
        yield None, None

    def found(bare, guarded, items, load, conditions):
        for _, condition in conditions:
            scale = 1 / mean if condition.name == "unmatched" else 1.0
            yield condition, load, [(block(1.0), block(scale))] * load.rounds

    monkeypatch.setattr(serving, "servers", none)
    monkeypatch.setattr(serving, "measure", found)
    stored = tmp_path / "stored.json"
    stored.write_text(
        json.dumps({"ratios": {"unmatched_throughput": {"mean": 0.98, "low": 0.97, "high": 0.99}}})
    )
    out = tmp_path / "new" / "report.json"
    wanted = ["--condition", "unmatched", "--condition", "semantic", "--condition", "shadow"]
    done = CliRunner().invoke(
        serving.serving,
        [*wanted, "--out", str(out), "--against", str(stored), "--rounds", "2", "--requests", "20"],
    )
    assert done.exit_code == code, done.output
    report = json.loads(out.read_text())
    assert report["ratios"]["unmatched_throughput"]["mean"] == pytest.approx(mean)
    assert report["rows"]["unmatched"]["load"]["rounds"] == 2
    assert {*report["rows"]} == {"unmatched", "semantic", "shadow"}
    assert started == [Setup(), Setup(semantic=True)]  # conditions of one kind share their servers


def test_targets_are_registered_as_the_condition_wants_them():
    for mode in ("shadow", "enforce", None):
        targets = wanted_targets(Condition("c", mode))
        assert {target["mode"] for target in targets} == {mode or "off"}
        assert len(targets) > 5
    rungs = {t["id"]: t for t in wanted_targets(named("matched_10_token_penalty")) if t["mode"] != "off"}
    assert [r["method"] for r in rungs.pop("demo-methods")["intervention"]] == ["token_penalty"]
    assert not rungs
    targets = wanted_targets(named("examples_10000"))
    enforced = [t for t in targets if t.get("mode") != "off"]
    assert sum(len(t["examples"]) for t in enforced) == 10_000
    assert all(t["tags"] == ["benchmark"] for t in enforced)


def test_what_was_registered_for_another_condition_is_taken_away_and_calibration_awaited(monkeypatch):
    calls = []

    class FakeAdmin:
        def __init__(self, client):
            self.left = [2, 1, 0]

        async def targets(self, tag):
            return [{"id": "invented-0"}, {"id": "invented-7"}]

        async def delete(self, target_id):
            calls.append(("delete", target_id))

        async def import_targets(self, lines):
            calls.append(("import", [json.loads(line)["id"] for line in lines.splitlines()]))

        async def status(self):
            calls.append(("status", self.left[0]))
            return {"pooled": self.left.pop(0)}

    async def at_once(seconds):
        pass

    monkeypatch.setattr(serving, "Admin", FakeAdmin)
    monkeypatch.setattr(serving.asyncio, "sleep", at_once)
    asyncio.run(serving.register(Server("http://127.0.0.1:1", "key", Meter(0)), named("examples_10")))
    assert calls[0] == ("delete", "invented-7") and calls[1][0] == "import"
    assert "invented-0" in calls[1][1] and "limir-yarley" in calls[1][1]
    assert [left for _, left in calls[2:]] == [2, 1, 0]


def test_invented_people_are_sound_targets_with_as_many_examples_as_asked_for():
    made = list(people(250, random.Random(0)))
    assert [len(one["examples"]) for one in made] == [100, 100, 50]
    for one in made:
        TargetSpec.model_validate({k: v for k, v in one.items() if k != "id"})
        assert len({*one["examples"]}) == len(one["examples"])
        assert not any("{" in text for text in (*one["examples"], one["description"]))


def test_what_only_the_demo_has_is_not_asked_of_another_model():
    assert [c.name for _, c in chosen("half-billion", ())] == ["unmatched"]
    assert len(chosen("demo", ())) == len(CONDITIONS)
    with pytest.raises(click.ClickException, match="only the demo"):
        chosen("half-billion", ["matched_10_sae_clamp"])
