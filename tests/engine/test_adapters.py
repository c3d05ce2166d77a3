"""Adapters act on their own requests only, with each request's own scale, and as many as are asked for."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from guard.artifacts import Artifact
from guard.config import AdapterSettings
from guard.context import RequestContext
from guard.engine.loading import load_artifact
from guard.errors import ArtifactError, GuardUnavailable
from guard.types import Match, Plan, Reply
from tests.engine.conftest import Harness, allowed, planned, serving
from tests.engine.lora import LINEAR, make, markers, random_tensors, scaled
from tests.engine.schedule import TOKENS

ROOT = Path(__file__).parents[2]
SLOTS, RESIDENT, ADAPTERS, LENGTH = 4, 16, 64, 6


class Layer:
    """A linear layer of width 8 -> 6 whose two slots hold adapters, as vLLM stacks them."""

    def __init__(self, punica: Any) -> None:
        torch.manual_seed(0)
        self.a, self.b = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 6, 4)
        self.punica = punica
        self.x = torch.randn(7, 8)

    def rows(self, *ids: int) -> torch.Tensor:
        """What is added to seven rows of zeros whose adapters have these numbers, 0 for none."""
        mapping = SimpleNamespace(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
        self.punica.update_metadata(mapping, [11, 12], 3, 100)
        y = torch.zeros(7, 6)
        self.punica.add_lora_linear(y, self.x, (self.a,), (self.b,), 1.0, (6,))
        return y

    def logits(self) -> torch.Tensor:
        y = torch.zeros(7, 6)
        self.punica.add_lora_logits(y, self.x, self.a, self.b, 1.0)
        return y


def punica(stock: bool = False) -> Any:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from guard.engine.adapters import RowPunica

    return (PunicaWrapperCPU if stock else RowPunica)(16, 16, "cpu")


def test_rows_without_an_adapter_get_nothing_where_vllm_gives_them_the_last_slots():
    stock, ours = (Layer(punica(stock)).rows(11, 0, 12, 0, 0, 11, 0) for stock in (True, False))
    clean = [1, 3, 4, 6]
    assert stock[clean].abs().max() > 0.1
    assert not ours[clean].any()
    assert torch.allclose(stock[[0, 2, 5]], ours[[0, 2, 5]], atol=1e-5)


def test_the_output_head_without_any_adapter_gets_nothing_where_vllm_gives_it_the_last_slots():
    stock, ours = Layer(punica(True)), Layer(punica())
    for layer in (stock, ours):
        layer.rows(*[0] * 7)
    assert stock.logits().abs().max() > 0.1
    assert not ours.logits().any()


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_a_scale_multiplies_what_its_own_row_gets(scale):
    layer = Layer(punica())
    ids = (11, 0, 12, 0, 0, 11, 0)
    whole, head = layer.rows(*ids), layer.logits()
    layer.punica.token_scales[5] = layer.punica.request_scales[5] = scale
    expected, expected_head = whole.clone(), head.clone()
    expected[5], expected_head[5] = expected[5] * scale, expected_head[5] * scale
    assert torch.equal(layer.rows(*ids), expected)
    assert torch.equal(layer.logits(), expected_head)


def test_likelihoods_of_prompts_are_taken_without_the_head():
    layer = Layer(punica())
    layer.rows(*[11] * 7)
    layer.punica.sampling = False
    assert not layer.logits().any()


def run(model_dir: Path, folder: Path, *flags: str) -> dict[str, Any]:
    out = folder / "seen.pickle"
    environ = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.lora", str(model_dir), str(out), *flags],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def ours(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(model_dir, tmp_path_factory.mktemp("ours"))


def clean_alike(seen: dict[str, Any], beside: str) -> bool:
    return all(
        np.array_equal(left, right)
        for i in range(4)
        for left, right in zip(seen["alone"][f"clean{i}"], seen[beside][f"clean{i}"], strict=True)
    )


@pytest.mark.engine
@pytest.mark.parametrize("beside", ["one", "two", "resident"])
def test_clean_requests_do_not_notice_adapters(ours, beside):
    assert clean_alike(ours, beside)


@pytest.mark.engine
def test_vllm_without_our_wrapper_leaks(model_dir, tmp_path):
    """Else the test above would prove nothing. One adapter alone leaves the last slot empty and shows no leak."""
    stock = run(model_dir, tmp_path, "--stock")
    assert clean_alike(stock, "one")
    assert not clean_alike(stock, "two")
    assert not clean_alike(stock, "resident")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("scaled_as", "same_as"),
    [
        ("nothing", "base"),
        ("whole", "plain"),
        ("half", "half trained"),
        ("head", "head plain"),
        ("no head", "base"),
    ],
)
def test_scales_are_exact_in_one_batch(ours, scaled_as, same_as):
    logits = ours["scales"]["logits"]
    # a prompt that was prefilled in chunks has rows of its parts before those of its answer
    assert np.allclose(logits[scaled_as][-TOKENS:], logits[same_as][-TOKENS:], atol=1e-4)


@pytest.mark.engine
def test_different_scales_differ(ours):
    logits = ours["scales"]["logits"]
    named = ("base", "plain", "half", "head")
    for i, one in enumerate(named):
        for other in named[i + 1 :]:
            assert not np.allclose(logits[one][0], logits[other][0], atol=0.05), (one, other)


@pytest.mark.engine
def test_a_request_without_the_adapter_of_its_edit_is_not_sound(ours):
    errors = {record[0]: record[3] for record in ours["scales"]["records"]}
    assert errors.pop("astray") == "NotFinite"
    assert errors == dict.fromkeys(("whole", "half", "nothing", "head", "no head"))


@pytest.fixture(scope="module")
def _adapted(model_dir: Path) -> Iterator[Harness]:
    with serving(model_dir, AdapterSettings(slots=SLOTS, max_rank=8, resident=RESIDENT)) as harness:
        yield harness


@pytest.fixture
def adapted(_adapted: Harness) -> Harness:
    _adapted.guard.verdict = lambda prompt: allowed()
    _adapted.engine.guard = _adapted.guard
    return _adapted


MATCH = Match("jane", 1, 1.0, 0.5, "lexical")


def under(artifact: Artifact, scale: float = 1.0) -> Any:
    """A verdict that puts the whole prompt under the adapter."""
    return lambda prompt: planned(Plan(edits=scaled(len(prompt.token_ids), artifact.digest, scale)))(prompt)


@pytest.mark.engine
def test_sixty_four_adapters_under_load_never_say_anothers_marker(adapted, model_dir, tmp_path):
    """Four slots and room for sixteen: adapters come and go while clean requests run beside them."""
    texts = [
        f"{word} jumps over {i} lazy dogs"
        for i, word in enumerate(["the", "quick", "brown", "fox", "sings", "in", "old", "trees"])
    ]
    prompts = [adapted.prompt(text) for text in texts]
    tokens = list(range(100, 100 + ADAPTERS))
    fitted = markers(model_dir, [p["prompt_token_ids"] for p in prompts], tokens, LENGTH)
    made = {t: make(model_dir, tmp_path / str(t), tensors) for t, tensors in zip(tokens, fitted, strict=True)}
    verdicts = {}
    adapted.guard.verdict = lambda prompt: verdicts[asyncio.current_task()](prompt)

    async def ask(prompt: Any, verdict: Any) -> list[int]:
        verdicts[asyncio.current_task()] = verdict
        outputs = await adapted.stream(dict(prompt), adapted.params(max_tokens=LENGTH, ignore_eos=True))
        return list(outputs[-1].outputs[0].token_ids)

    async def load() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        for artifact in made.values():
            await load_artifact(adapted.engine, artifact)
        before = [await ask(p, lambda _: allowed()) for p in prompts]
        wanted = [(t, p) for p in prompts for t in tokens]
        marked = [ask(p, under(made[t])) for t, p in wanted]
        clean = [ask(p, lambda _: allowed()) for p in prompts for _ in range(4)]
        answers = await asyncio.gather(*marked, *clean)
        assert len(await adapted.engine.list_loras()) <= RESIDENT
        return before, answers[: len(marked)], answers[len(marked) :]

    before, marked, clean = adapted.run(load())
    assert marked == [[t] * LENGTH for _ in prompts for t in tokens]
    assert clean == [answer for answer in before for _ in range(4)]


def spoilt(tensors: dict[str, Any], how: str) -> dict[str, Any]:
    first = next(iter(tensors))
    if how == "not finite":
        tensors[first][0, 0] = float("nan")
    elif how == "zero":
        return {name: t * (0 if "lora_B" in name else 1) for name, t in tensors.items()}
    elif how == "another layer":
        return {name.replace("layers.1.", "layers.7."): t for name, t in tensors.items()}
    elif how == "another width":
        tensors[first] = tensors[first][:, :-1].clone()
    elif how == "no effect":
        return {name: t * 1e-12 for name, t in tensors.items()}
    return tensors


@pytest.mark.engine
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("not finite", "not finite"),
        ("zero", "changes nothing"),
        ("another layer", "no layer model.layers.7"),
        ("another width", "does not fit"),
        ("no effect", "does not change"),
        ("rank", "cannot take"),
    ],
)
def test_an_adapter_that_does_not_fit_or_does_nothing_is_refused(adapted, model_dir, tmp_path, how, why):
    tensors = spoilt(random_tensors(model_dir, rank=16 if how == "rank" else 4), how)
    artifact = make(model_dir, tmp_path / "spoilt", tensors)
    with pytest.raises(ArtifactError, match=why):
        adapted.run(load_artifact(adapted.engine, artifact))
    adapted.guard.verdict = under(artifact)
    with pytest.raises(GuardUnavailable):
        adapted.ask("the quick brown fox")
    adapted.guard.verdict = lambda prompt: allowed()
    assert adapted.ask("the quick brown fox").outputs[0].token_ids


@pytest.mark.engine
def test_a_scale_has_its_own_blocks_in_the_cache(adapted, model_dir, tmp_path):
    artifact = make(model_dir, tmp_path / "one", random_tensors(model_dir, seed=3))
    adapted.run(load_artifact(adapted.engine, artifact))
    text = "many small birds sing in old trees while the lazy dog jumps over a fox " * 3
    cached = []
    for scale in (1.0, 0.5, 0.5):
        adapted.guard.verdict = under(artifact, scale)
        told = RequestContext("d1", "/v1/completions", 0.0)
        adapted.ask(text, told)
        cached.append(told.edits[0].from_cache)
    assert cached[:2] == [0, 0] and cached[2] > 0


@pytest.mark.engine
def test_a_request_that_brings_its_own_adapter_gets_the_reply(adapted, model_dir, tmp_path):
    from tests.engine.lora import request

    artifact = make(model_dir, tmp_path / "one", random_tensors(model_dir, seed=4, modules=LINEAR[:2]))
    adapted.run(load_artifact(adapted.engine, artifact))
    plan = scaled(4, artifact.digest)
    reply = Reply(text="nothing known")
    adapted.guard.verdict = planned(Plan(edits=plan), matches=(MATCH,), reply=reply)

    async def ask() -> Any:
        source = adapted.engine.generate(
            adapted.prompt("the fox"), adapted.params(), "own", lora_request=request(artifact)
        )
        return [output async for output in source][-1]

    assert adapted.run(ask()).outputs[0].text == "nothing known"
