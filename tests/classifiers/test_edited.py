"""What a method does to a model in process is what its edits say, computed here once more by hand, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers.activations import load_model
from classifiers.edited import Row, Speaker, Treatment, draws
from classifiers.lora import write_peft
from guard import artifacts, interventions
from guard.errors import BadRequest
from guard.interventions.assistant import beginning, merge
from guard.interventions.logit_difference import difference
from guard.interventions.noise import seed_of
from guard.types import Match, Prompt, Span
from tests.classifiers.tiny import save_model

WIDTH, GATES, LAYER = 16, 24, 1  # the last layer: what comes behind it is computed by hand
END = 2  # where the model's answers end
PROMPTS = ((4, 7, 2, 9, 5, 8), (3, 6, 11), (12, 2, 2, 7, 13, 14, 9, 4))
ANSWERS = ((10, 3, 8), (5,), (9, 9, 2, 6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Tokens of one character each; the third and the fourth match."""
    made = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        offsets = tuple(Span(i, i + 1) for i in range(len(prompt)))
        read = Prompt("x" * len(prompt), prompt, offsets)
        made.append(Row(read, Match("t", 1, 1.0, 0.5, "lexical", (Span(2, 4),)), "", answer))
    return made


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def treatment(folder: Path, out: Path, method: str, params: dict[str, Any], tensors: Any, facts: Any) -> Any:
    base = artifacts.weights_digest(folder)
    return Treatment.of(artifacts.write(out, method, base, tensors=tensors, facts=facts), folder, **params)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Treatment]:
    """A treatment with an artifact of noise."""
    size = (4, WIDTH)
    gaussians = {
        f"{LAYER}.{name}": noise(2, GATES, seed=seed).abs() for name, seed in (("forget", 2), ("retain", 3))
    }
    layer = "model.layers.0.self_attn.q_proj"
    halves = {f"{layer}.lora_A.weight": noise(*size), f"{layer}.lora_B.weight": noise(*size[::-1], seed=2)}
    tensors: dict[str, Any] = {
        "steering": {"forget": noise(1, WIDTH), "retain": noise(1, WIDTH, seed=2)},
        "sae_clamp": {
            "encoder": noise(WIDTH, 5), "bias": noise(5), "threshold": noise(5).abs(), "decoder": noise(5, WIDTH),
        },
        "neuron_adjust": {**gaussians, f"{LAYER}.index": torch.arange(GATES)},
        "logit_difference": halves,
    }  # fmt: skip
    facts: dict[str, Any] = {
        "steering": {"layers": [LAYER]},
        "sae_clamp": {"layers": [LAYER], "normalisation": "none"},
        "neuron_adjust": {"layers": [LAYER]},
        "logit_difference": {"blocks": 1, "rank": 4, "alpha": 8.0},
    }

    def make(method: str, **params: Any) -> Treatment:
        out = tmp_path_factory.mktemp(method)
        if method == "lora_adapter":
            pairs = {
                f"base_model.model.{name.replace('0', str(i), 1)}": half.clone()
                for name, half in halves.items()
                for i in (0, 1)
            }
            write_peft(out, pairs, rank=4, scaling=2.0, modules=["q_proj"])
        return treatment(folder, out, method, params, tensors.get(method), facts.get(method))

    return make


def ids(row: Row) -> torch.Tensor:
    return torch.tensor([[*row.prompt.token_ids, *row.answer_ids]])


def places(row: Row, wanted: Treatment) -> torch.Tensor:
    """All positions that are edited: the planned ones, and those of the answer where the edit goes onward."""
    (edit,) = row.edits(wanted)
    start = len(row.prompt.token_ids)
    return torch.tensor(
        [*edit.positions, *(range(start, start + len(row.answer_ids)) if edit.onward else ())]
    )


def new(row: Row, wanted: Treatment, x: torch.Tensor, at: torch.Tensor, seed: str) -> torch.Tensor:
    """`x` [tokens, width] with the method's rows at these positions."""
    (edit,) = row.edits(wanted)
    seeds = torch.full_like(at, seed_of(seed))
    out = x.clone()
    method = interventions.load(wanted.method)
    out[at] = method.edit(x[at], at, seeds, edit.layer, edit.params, wanted.table)
    return out


def embedding(model: Any, row: Row, wanted: Treatment, seed: str) -> torch.Tensor:
    x = model.get_input_embeddings()(ids(row))[0]
    return model(inputs_embeds=new(row, wanted, x, places(row, wanted), seed).unsqueeze(0)).logits[0]


def residual(model: Any, row: Row, wanted: Treatment, seed: str) -> torch.Tensor:
    x = behind(model, row)[0]
    return model.lm_head(model.model.norm(new(row, wanted, x, places(row, wanted), seed)))


def neuron(model: Any, row: Row, wanted: Treatment, seed: str) -> torch.Tensor:
    x, entered = behind(model, row)
    mlp = model.model.layers[LAYER].mlp
    gates = new(row, wanted, mlp.gate_proj(entered), places(row, wanted), seed)
    said = mlp.down_proj(mlp.act_fn(gates) * mlp.up_proj(entered))
    return model.lm_head(model.model.norm(x - mlp(entered) + said))


def behind(model: Any, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, width] behind the last layer, and what its feed-forward network reads."""
    seen: list[torch.Tensor] = []
    layer = model.model.layers[LAYER]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output)),
        layer.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])),
    ]
    model(ids(row))
    for hook in hooks:
        hook.remove()
    entered, out = seen
    return out.reshape(-1, WIDTH), entered[0]


def logits(model: Any, row: Row, wanted: Treatment, seed: str) -> torch.Tensor:
    (edit,) = row.edits(wanted)
    assistant = beginning(Path(model.name_or_path), 1)
    merge(assistant, artifacts.read(wanted.folder).tensors(), 2.0)
    return difference(model(ids(row)).logits[0], assistant(ids(row)).logits[0], edit.params)


def adapter(model: Any, row: Row, wanted: Treatment, seed: str) -> torch.Tensor:
    merged = load_model(Path(model.name_or_path))[0]
    halves = artifacts.read(wanted.folder).tensors()
    down, up = (next(t for name, t in halves.items() if half in name) for half in ("lora_A", "lora_B"))
    for layer in merged.model.layers:
        layer.self_attn.q_proj.weight += 0.5 * 2.0 * up @ down
    return merged(ids(row)).logits[0]


CASES: list[Any] = [
    ("embedding_corruption", {"strength": 2.0}, embedding),
    ("embedding_corruption", {"strength": 2.0, "tokens": "prompt", "dims": 9}, embedding),
    ("steering", {"mode": "additive"}, residual),
    ("steering", {"mode": "projection", "tokens": "window", "onward": False}, residual),
    ("sae_clamp", {"strength": 0.5}, residual),
    ("neuron_adjust", {"tokens": "prompt"}, neuron),
    ("neuron_adjust", {"onward": False}, neuron),
    ("logit_difference", {"alpha": 2.0}, logits),
    ("lora_adapter", {"scale": 0.5}, adapter),
]


@pytest.mark.parametrize(("method", "params", "by_hand"), CASES)
def test_answers_are_as_likely_as_by_hand(
    model: Any, rows: list[Row], made: Callable[..., Treatment], method: str, params: Any, by_hand: Any
) -> None:
    wanted = Treatment(method, params) if by_hand is embedding else made(method, **params)
    (draw,) = draws(3, 1)
    speaker = Speaker(*model, [draw])
    untouched = speaker.scores(rows, None, "probability")
    found = speaker.scores(rows, wanted, "probability")
    with torch.no_grad():
        for row, said in zip(rows, found, strict=True):
            logs = by_hand(model[0], row, wanted, draw(row.prompt))[
                len(row.prompt.token_ids) - 1 : -1
            ].log_softmax(-1)
            likely = logs.gather(1, torch.tensor(row.answer_ids).unsqueeze(1)).mean().exp()
            assert said == pytest.approx(float(likely), rel=1e-4)
    assert max(abs(a / b - 1) for a, b in zip(found, untouched, strict=True)) > 0.05, (
        "else nothing was compared"
    )
    assert speaker.scores(rows, None, "probability") == untouched, "nothing of the edit stays behind"


class Numbers:
    """A tokenizer that writes tokens as their numbers."""

    eos_token_id = 1

    def batch_decode(self, ids: torch.Tensor, **options: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


@pytest.mark.parametrize(("method", "params"), [case[:2] for case in CASES])
def test_what_is_written_is_the_likeliest_token_by_token(
    model: Any, rows: list[Row], made: Callable[..., Treatment], method: str, params: Any
) -> None:
    """Prompt and answer are read in one pass when they are scored and in many when the answer is written."""
    wanted = Treatment(method, params) if method == "embedding_corruption" else made(method, **params)
    speaker = Speaker(model[0], Numbers(), draws(0, 1))
    assert model[0].generation_config.eos_token_id == END
    for row, written in zip(rows, speaker.answers(rows, wanted), strict=True):
        said = tuple(map(int, written.split()))
        said = said[: said.index(END) + 1 if END in said else 4]
        for place in range(len(said)):
            others = [replace(row, answer_ids=(*said[:place], token)) for token in range(len(model[1]))]
            found = speaker.scores(others, wanted, "probability")
            assert found[said[place]] == pytest.approx(max(found), rel=1e-4)


def test_a_method_that_edits_nothing_is_refused(rows: list[Row]) -> None:
    for method in ("guard_prompt", "steering"):
        with pytest.raises(BadRequest, match=f"{method} edits nothing"):
            rows[0].edits(Treatment(method, {}))


def test_draws_are_the_prompt_s_own(rows: list[Row]) -> None:
    one, two = draws(0, 2)
    assert len({draw(row.prompt) for draw in (one, two) for row in rows}) == 6
    assert draws(0, 1)[0](rows[0].prompt) == one(rows[0].prompt) != draws(1, 1)[0](rows[0].prompt)
