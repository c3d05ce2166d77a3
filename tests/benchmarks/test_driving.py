"""What vLLM's client tells of a block, as the benchmarks tell it."""

from __future__ import annotations

import click
import pytest

from benchmarks.driving import Load, Meter, Server

LOAD = Load(3, 2, None, 4, 1)
PROMPTS = [[{"role": "user", "content": str(n)}] for n in range(3)]


@pytest.fixture
def told(monkeypatch):
    found = {
        "errors": ["", "", ""],
        "duration": 2.0,
        "total_output_tokens": 9,
        "ttfts": [0.1, 0.2, 0.3],
        "itls": [[0.3, 0.3, 0.3], [0.6, 0.0], []],  # of the second, one chunk held two tokens
        "output_lens": [4, 4, 1],
    }

    async def benchmark(**_):
        return found

    monkeypatch.setattr("vllm.benchmarks.serve.benchmark", benchmark)
    monkeypatch.setattr(Meter, "read", lambda self: (1.0, 1_000))
    return found


def test_time_per_token_does_not_depend_on_chunks(told):
    block = Server("http://h", None, Meter(0)).drive(PROMPTS, LOAD, 0)
    assert block.each == pytest.approx((0.3, 0.2))  # an answer of one token has none
    assert block.gaps == (0.3, 0.3, 0.3, 0.6, 0.0)


def test_failed_requests_are_told_with_whose_they_were_and_why(told):
    told["errors"][1] = "Traceback (most recent call last):\n  File ...\nServerDisconnectedError: gone\n"
    with pytest.raises(click.ClickException, match=r"1 of 3 requests to bare vLLM failed: Server.*gone$"):
        Server("http://h", None, Meter(0)).drive(PROMPTS, LOAD, 0)
