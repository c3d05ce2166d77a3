"""Windows with a change of the register and windows without, and the gaps of streams in them."""

import asyncio
import itertools
import json

import httpx
import pytest

from benchmarks import swaps
from benchmarks.driving import Meter, Server
from benchmarks.swaps import Gaps, Span, alternate, row, stream, watched
from evals.client import ClientError

PROMPTS = [[{"role": "user", "content": f"prompt {i}"}] for i in range(3)]


class FakeAdmin:
    """Takes `seconds` for a change."""

    def __init__(self, seconds=0.0):
        self.seconds, self.puts = seconds, []

    async def put(self, target_id, target):
        self.puts.append((target_id, target["name"]))
        await asyncio.sleep(self.seconds)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(swaps, "_WARM", 0.0)


def versions():
    return itertools.cycle([{"name": "one"}, {"name": "other"}])


def test_a_gap_belongs_to_the_windows_that_it_touches():
    gaps = Gaps([(1.0, 0.2), (2.0, 0.5), (3.5, 1.4), (9.0, 0.1)])
    assert gaps.within(Span(1.4, 2.2)) == [0.5, 1.4]  # one that began before its end
    assert gaps.within(Span(3.0, 9.0)) == [1.4, 0.1]
    assert gaps.within(Span(5.0, 8.0)) == []


@pytest.mark.parametrize("takes", [0.0, 0.06])
def test_each_change_has_a_window_and_a_quiet_one_of_the_same_length_beside_it(at_once, takes):
    admin = FakeAdmin(takes)
    busy, quiet, took = asyncio.run(alternate(admin, versions(), 3, 0.03))
    assert [name for _, name in admin.puts] == ["one", "other", "one"]
    spans = [span for pair in zip(busy, quiet, strict=True) for span in pair]
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    for one, other, seconds in zip(busy, quiet, took, strict=True):
        assert one.end - one.start >= max(0.03, seconds)  # the change lies wholly within
        assert other.end - other.start == pytest.approx(one.end - one.start, abs=0.02)


def test_what_a_change_costs_is_told_in_milliseconds_and_as_a_ratio():
    gaps = Gaps([(at + 0.01 * i, 0.03 if at % 2 else 0.01) for at in range(20) for i in range(1, 90)])
    busy, quiet = ([Span(at + 0.05, at + 0.9) for at in range(first, 20, 2)] for first in (1, 0))
    told = row(gaps, busy, quiet, [0.2, 0.1, 0.3], {"examples": 7})
    assert told.figures["swap_gap_p99_difference_ms"].mean == pytest.approx(20)
    assert told.ratios["swap_gap_p99"].mean == pytest.approx(3)
    assert told.ratios["swap_gap_p99"].n == 10
    assert told.about["changes"] == {"median_s": 0.2, "most_s": 0.3, "n": 3}


def events(texts, status=200):
    def answer(request):
        assert json.loads(request.content)["stream"] is True
        lines = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        lines += [{"choices": [{"delta": {"content": text}}]} for text in texts]
        body = "".join(f"data: {json.dumps(line, separators=(',', ':'))}\n\n" for line in lines)
        return httpx.Response(status, text=f"{body}data: [DONE]\n\n")

    return httpx.MockTransport(answer)


def test_a_streams_gaps_lie_between_its_texts_only():
    async def run(status):
        gaps = Gaps()
        async with httpx.AsyncClient(base_url="http://x", transport=events("abc", status)) as http:
            await stream(http, iter([{"stream": True}] * 2), gaps)
        return gaps.seen

    assert len(asyncio.run(run(200))) == 4  # two between three texts, none over the edge of an answer
    with pytest.raises(ClientError, match="503"):
        asyncio.run(run(503))


def test_a_failed_stream_ends_the_measurement(at_once, monkeypatch):
    def failing(**options):
        return real(**{**options, "transport": events("a", 500)})

    real = httpx.AsyncClient
    monkeypatch.setattr(swaps.httpx, "AsyncClient", failing)
    monkeypatch.setattr(swaps, "Admin", lambda client: FakeAdmin(5))
    with pytest.raises(ClientError, match="500"):
        asyncio.run(watched(Server("http://x", "key", Meter(0)), PROMPTS, 2, 8, 3, 5.0))
