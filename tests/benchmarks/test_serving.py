"""Which ratios are told of what both servers took, and how requests are laid on them."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import serving
from benchmarks.serving import Block, Condition, Load, Meter, measure, mixed, paired, quantile_ratio, worse
from evals import serve
from evals.items import Item

LOAD = Load(requests=20, concurrency=4, rate=None, tokens=8, rounds=3)


def item(split, number):
    turns = (("user", f"{split} {number}"),)
    return Item(f"{split}-{number}", "e", split, "trained", turns, "an answer", "v")


ITEMS = [item(split, n) for split in ("forget", "retain", "chat", "other") for n in range(7)]


def block(scale=1.0, requests=20):
    first = tuple(0.1 * scale + 0.1 for _ in range(requests))
    gaps = tuple(0.01 * scale for _ in range(requests))
    return Block(2.0 * scale, 160, first, gaps, scale, int(1e9 * scale))


class FakeServer:
    """Answers with a block that takes `scale` times as long as bare vLLM's."""

    def __init__(self, name, scale, log):
        self.base_url, self.key, self.scale, self.log = name, None, scale, log

    def drive(self, prompts, load, seed):
        self.log.append((self.base_url, [turns[-1]["content"] for turns in prompts], seed))
        return block(self.scale, len(prompts))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.1, 10), (1.0, 100)])
def test_the_share_of_matched_prompts_is_exact_and_spread(share, count):
    texts = [turns[-1]["content"] for turns in mixed(ITEMS, share, 100)(0)]
    about = [i for i, text in enumerate(texts) if text.startswith("forget")]
    assert len(about) == count
    if count == 10:
        assert set(np.diff(about)) == {10}
    assert not [text for text in texts if text.startswith("other")]


def test_rounds_ask_something_else():
    prompts = mixed(ITEMS, 0.1, 5)
    assert prompts(0) != prompts(1)
    assert prompts(1) == prompts(1)


def test_both_get_the_same_requests_and_take_turns_in_going_first():
    log = []
    bare, guarded = FakeServer("bare", 1.0, log), FakeServer("guarded", 2.0, log)
    pairs = list(paired(bare, guarded, mixed(ITEMS, 0.1, LOAD.requests), LOAD))
    assert len(pairs) == LOAD.rounds  # the first, which warms both, is not counted
    assert all(first.seconds < second.seconds for first, second in pairs)
    rounds = [log[i : i + 2] for i in range(0, len(log), 2)]
    assert len(rounds) == LOAD.rounds + 1
    for one, other in rounds:
        assert one[1:] == other[1:] and one[0] != other[0]
    assert [one[0] for one, _ in rounds] == ["bare", "guarded", "bare", "guarded"]


def test_ratios_are_guarded_over_bare(monkeypatch):
    async def nothing(server, condition):
        pass

    monkeypatch.setattr(serving, "register", nothing)
    bare, guarded = FakeServer("bare", 1.0, []), FakeServer("guarded", 2.0, [])
    ratios = measure(bare, guarded, ITEMS, LOAD, [Condition("unmatched", "enforce")])
    assert ratios["unmatched_throughput"]["mean"] == 0.5
    for name in ("itl_mean", "itl_p99", "cpu_per_token", "memory"):
        assert ratios[f"unmatched_{name}"]["mean"] == pytest.approx(2.0)
    assert ratios["unmatched_throughput"]["n"] == LOAD.rounds
    assert ratios["unmatched_ttft_p50"]["n"] == LOAD.rounds * LOAD.requests
    assert ratios["unmatched_ttft_p50"]["mean"] == pytest.approx(1.5)  # a half of it is the same


def test_a_quantiles_ratio_has_an_interval_over_pairs():
    rng = np.random.default_rng(1)
    first = rng.exponential(size=400)
    exact = quantile_ratio([(x, 1.5 * x) for x in first], 0.9)
    assert exact.n == 400
    assert [exact.mean, exact.low, exact.high] == pytest.approx([1.5] * 3)
    noisy = quantile_ratio(list(zip(first, 1.1 * rng.exponential(size=400), strict=True)), 0.5)
    assert noisy.low < 1.1 < noisy.high and noisy.low < noisy.mean < noisy.high
    assert quantile_ratio([], 0.5) is None


def test_only_what_is_certainly_worse_is_told():
    def ratio(low, mean, high):
        return {"low": low, "mean": mean, "high": high}

    stored = {
        name: ratio(0.95, 1.0, 1.05) for name in ("a_throughput", "b_throughput", "a_ttft_p50", "b_ttft_p50")
    }
    now = {
        "a_throughput": ratio(0.80, 0.85, 0.90),
        "b_throughput": ratio(0.90, 0.94, 0.96),
        "a_ttft_p50": ratio(0.80, 0.85, 0.90),
        "b_ttft_p50": ratio(1.10, 1.20, 1.30),
        "new_throughput": ratio(0.1, 0.1, 0.1),
    }
    assert worse(now, stored) == ["a_throughput: 0.850, was 1.000", "b_ttft_p50: 1.200, was 1.000"]


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
    from contextlib import contextmanager

    @contextmanager
    def none(model, arguments):
        yield None, None

    found = {"unmatched_throughput": {"n": 3, "mean": mean, "low": mean, "high": mean}}
    monkeypatch.setattr(serving, "servers", none)
    monkeypatch.setattr(serving, "measure", lambda *_: found)
    stored = tmp_path / "stored.json"
    stored.write_text(
        json.dumps({"ratios": {"unmatched_throughput": {"mean": 0.98, "low": 0.97, "high": 0.99}}})
    )
    out = tmp_path / "report.json"
    done = CliRunner().invoke(serving.serving, ["--out", str(out), "--against", str(stored), "--rounds", "2"])
    assert done.exit_code == code, done.output
    report = json.loads(out.read_text())
    assert report["ratios"] == found and report["load"]["rounds"] == 2


def test_targets_are_registered_as_the_condition_wants_them(monkeypatch):
    import asyncio

    seen = []

    async def taken(self, lines):
        seen.extend(map(json.loads, lines.splitlines()))

    monkeypatch.setattr(serving.Admin, "import_targets", taken)
    server = serving.Server("http://127.0.0.1:1", "key", Meter(0))
    for mode in ("shadow", "enforce", None):
        asyncio.run(serving.register(server, Condition("c", mode)))
        assert {target["mode"] for target in seen} == {mode or "off"}
        assert len(seen) > 5
        seen.clear()
