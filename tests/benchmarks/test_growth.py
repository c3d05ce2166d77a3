"""Memory of a server as it serves, and the time of judging as the register grows."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import growth, scale
from benchmarks.driving import Block, Load
from evals.items import Item

LOAD = Load(50, 4, None, 8, 1)
ITEMS = [
    Item(f"{split}-{i}", "e", split, "trained", (("user", f"{split} {i}"),), "a", "v")
    for split in ("forget", "retain")
    for i in range(5)
]


class FakeServer:
    """Keeps `kept` bytes of each request."""

    def __init__(self, kept):
        self.kept, self.asked = kept, []

    def drive(self, prompts, load, seed):
        self.asked += [turns[-1]["content"] for turns in prompts]
        return Block(1.0, 8, (0.1,), (0.1,), (0.1,), 1.0, 1_000_000_000 + self.kept * len(self.asked))


def test_growth_is_what_each_request_leaves_behind():
    servers = {"bare": FakeServer(0), "guarded": FakeServer(3_000)}
    samples = {name: growth.sampled(server, ITEMS, 1_000, LOAD) for name, server in servers.items()}
    assert [at for at, _ in samples["bare"]] == list(range(50, 1_001, 50))
    asked = servers["guarded"].asked
    assert len({*asked}) == 1_000 and sum("forget" in text for text in asked) == 100
    told = growth.row(samples, 500, LOAD)
    size = 1_000_000_000 + 3_000 * 750
    assert told.figures["guarded_memory_growth_share"].mean == pytest.approx(30_000_000 / size)
    assert told.figures["bare_memory_growth_share"].mean == pytest.approx(0, abs=1e-9)
    assert told.ratios["memory_growth"].mean == pytest.approx(1 + 30_000_000 / size)
    assert told.ratios["memory_growth"].n == 11  # from the 500th request on


def test_what_fills_at_first_is_not_growth():
    samples = {
        name: [(at, 10**9 + min(at, 500) * 10**6) for at in range(50, 1_001, 50)]
        for name in ("bare", "guarded")
    }
    assert growth.row(samples, 500, LOAD).ratios["memory_growth"].mean == pytest.approx(1)
    assert growth.row(samples, 0, LOAD).ratios["memory_growth"].mean > 2


def test_too_few_requests_are_refused_at_once():
    done = CliRunner().invoke(growth.growth, ["--requests", "5000", "--settled", "4500"])
    assert (done.exit_code, "--settled" in done.output) == (2, True)


class FakeGate:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def detect(self, prompt):
        self.log.append((self.name, prompt.text))


def test_both_registers_judge_the_same_prompts_in_turn():
    log, number = [], iter(range(1_000))
    texts = SimpleNamespace(of=lambda tokens: f"{tokens} {next(number)}")
    pairs = scale.in_turn(FakeGate("small", log), FakeGate("large", log), texts, 32, 20)
    assert len(pairs) == 20
    told = [log[i : i + 2] for i in range(0, len(log), 2)]
    assert all(one[1] == other[1] and one[0] != other[0] for one, other in told)
    assert {one[0] for one, _ in told} == {"small", "large"}  # each goes first at times
    assert len({text for _, text in log}) == len(log) / 2


def test_the_large_register_is_told_over_the_small_one():
    pairs = [(1.0 + i / 100, 2 * (1.0 + i / 100)) for i in range(100)]
    told = scale.row("detection_at_scale", pairs, {})
    assert told.ratios["detection_at_scale_p99"].mean == pytest.approx(2)
    assert told.ratios["detection_at_scale_p50"].mean == pytest.approx(2)
    assert told.figures["detection_at_scale_p99_ms_large"].mean == pytest.approx(3.96, abs=0.02)
