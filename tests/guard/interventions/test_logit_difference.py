"""The combination is ULD's to the letter, and the assistant says what it would say to the whole text at once."""

from __future__ import annotations

import math

import pytest
import torch

from guard import artifacts, interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions import Row
from guard.interventions.assistant import Assistant, beginning, merge
from guard.interventions.logit_difference import FILTERED, LogitDifference, difference
from guard.types import Chosen, Match, Prompt, Span

ULD = {"alpha": 0.5, "filter": 0.01, "form": "uld"}
DIGEST = "ab" * 32
VOCABULARY = 64


def chosen(*targets, **params):
    matches = tuple(Match(t, 1, 1.0, 0.5, "lexical") for t in targets)
    return Chosen("logit_difference", {"artifact": DIGEST, **params}, matches)


def plan(what, ids=(5, 6, 7)):
    prompt = Prompt("a b c", ids, tuple(Span(i, i + 1) for i in range(len(ids))))
    return LogitDifference().plan(what, prompt, lambda target: f"{target:0>16}").edits


def test_the_whole_answer_is_one_edit_whatever_the_number_of_targets():
    (edit,) = plan(chosen("a", "b", alpha=1.5))
    assert (edit.site, edit.layer, edit.positions, edit.onward) == ("logits", None, (2,), True)
    assert (edit.method, edit.table, edit.params["alpha"]) == ("logit_difference", DIGEST, 1.5)


def test_without_an_assistant_or_a_prompt_it_cannot_act():
    assert plan(chosen("a", artifact=None)) == ()
    assert plan(chosen("a"), ()) == ()
    assert plan(chosen()) == ()


@pytest.mark.parametrize(
    "params",
    [
        {"artifact": "demo/models"},
        {"alpha": 0},
        {"alpha": math.inf},
        {"filter": 1.0},
        {"filter": -0.1},
        {"form": "other"},
        {"beta": 1},
    ],
)
def test_unknown_parameters_are_refused(params):
    with pytest.raises(BadRequest, match="logit_difference"):
        interventions.check_params("logit_difference", params)


def test_what_passes_the_filter_is_subtracted_and_the_rest_has_no_chance():
    # The second of 200 tokens is the floor(0.01 * 200)-th, far above the maximum + ln 0.01: the lower bound holds.
    base, assistant = torch.full((1, 200), -8.0), torch.arange(200.0).unsqueeze(0)
    base[0, :3] = torch.tensor([3.0, 2.5, 3.0 + math.log(0.01) + 0.01])
    new = difference(base, assistant, ULD)
    assert torch.allclose(new[0, :3], base[0, :3] - 0.5 * assistant[0, :3])
    assert (new[0, 3:] == FILTERED).all()


def test_the_filter_keeps_its_share_of_the_vocabulary_however_unlikely():
    base = torch.full((1, 400), -50.0)
    base[0, :4] = torch.tensor([3.0, -20.0, -30.0, -40.0])
    new = difference(base, torch.zeros(1, 400), ULD)
    assert new[0, :4].tolist() == base[0, :4].tolist()
    assert (new[0, 4:] == FILTERED).all()


def test_without_a_filter_log_probabilities_are_subtracted():
    base, assistant = torch.randn(3, 50), torch.randn(3, 50)
    expected = base.log_softmax(1) - 0.5 * assistant.log_softmax(1)
    assert torch.equal(difference(base, assistant, {**ULD, "filter": 0.0}), expected)


def test_whp_takes_away_only_where_the_assistant_is_louder():
    base, assistant = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 1.0, 3.0]])
    new = difference(base, assistant, {"alpha": 5.0, "filter": 0.01, "form": "whp"})
    assert new.tolist() == [[-4.0, 2.0, 3.0]]


@pytest.mark.parametrize("form", ["uld", "whp"])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.5])
def test_a_mask_stays_and_no_row_loses_its_last_token(form, rate):
    base = torch.randn(5, 100)
    base[:, 3:] = -torch.inf
    base[0, 1:] = -torch.inf
    new = difference(base, torch.randn(5, 100) * 10, {"alpha": 3.0, "filter": rate, "form": form})
    assert torch.equal(torch.isneginf(new), torch.isneginf(base))
    assert not torch.isnan(new).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of three blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    return beginning(folder, 2)


def texts(*lengths, seed=0):
    make = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (n,), generator=make).tolist() for n in lengths]


def at_once(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1]


class Watched:
    """An assistant whose fed tokens are counted."""

    def __init__(self, model):
        self.assistant, self.fed = Assistant(model), 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.fed += kwargs["input_ids"].numel()

    def say(self, **requests):
        rows = [Row(name, *parts) for name, parts in requests.items()]
        return dict(zip(requests, self.assistant.logits(rows), strict=True))


def agrees(model, said, **requests):
    for name, (prompt, output) in requests.items():
        torch.testing.assert_close(said[name], at_once(model, [*prompt, *output]), rtol=1e-4, atol=1e-4)


def test_answers_of_unequal_lengths_grow_together_and_no_token_is_fed_twice(model):
    watched = Watched(model)
    a, b, c = texts(5, 23, 11)
    answers = texts(6, 6, 6, seed=1)
    for n in range(6):
        rows = {name: (p, o[:n]) for name, p, o in zip("abc", (a, b, c), answers, strict=True)}
        if n % 2:
            rows = dict(reversed(rows.items()))
        agrees(beginning_like(model), watched.say(**rows), **rows)
    assert watched.fed == 5 + 23 + 11 + 3 * 5


def beginning_like(model):
    """The same model without the hooks that count."""
    import copy

    plain = copy.deepcopy(model)
    plain._forward_pre_hooks.clear()
    return plain


def test_a_batch_that_changes_changes_nobody(model):
    watched, plain = Watched(model), beginning_like(model)
    a, b, c = texts(7, 3, 12)
    (x, y, z) = texts(8, 8, 8, seed=1)
    for rows in (
        {"a": (a, [])},
        {"a": (a, x[:1]), "b": (b, [])},
        {"b": (b, y[:1]), "a": (a, x[:2]), "c": (c, [])},
        {"c": (c, z[:1]), "b": (b, y[:2])},
        {"b": (b, y[:4]), "c": (c, z[:2]), "a": (a, x[:3])},
    ):
        agrees(plain, watched.say(**rows), **rows)
    assert watched.fed == 7 + 3 + 12 + 3 + 4 + 2


def test_a_request_that_was_preempted_goes_on_where_it_was(model):
    watched, plain = Watched(model), beginning_like(model)
    (a, b), (x, y) = texts(9, 4), texts(5, 5, seed=1)
    for n in range(3):
        watched.say(a=(a, x[:n]), b=(b, y[:n]))
    watched.say(b=(b, y[:3]))
    before = watched.fed
    rows = {"a": (a, x[:3]), "b": (b, y[:4])}
    agrees(plain, watched.say(**rows), **rows)
    assert watched.fed == before + 2


def test_other_tokens_under_a_known_name_are_read_anew(model):
    watched, plain = Watched(model), beginning_like(model)
    (a, b), (x,) = texts(9, 9, seed=3), texts(5, seed=1)
    watched.say(r=(a, x[:2]))
    other = (x[0] + 1) % VOCABULARY
    for output in (x[:3], x[:3], x[:1], [other, *x[:2]], [x[0]]):
        rows = {"r": (b, output)}
        agrees(plain, watched.say(**rows), **rows)


def test_what_is_said_again_is_not_computed_again(model):
    watched = Watched(model)
    (a,) = texts(9)
    first, second = watched.say(r=(a, [1])), watched.say(r=(a, [1]))
    torch.testing.assert_close(first["r"], second["r"])
    assert watched.fed == 10 + 1


def test_an_ended_request_leaves_nothing(model):
    assistant = Assistant(model)
    assistant.logits([Row("a", [1, 2], []), Row("b", [3], [])])
    assistant.forget("a")
    assistant.forget("unknown")
    assert len(assistant) == 1


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_what_is_no_token_is_not_fed(model, token):
    with pytest.raises(ValueError, match="not all known"):
        Assistant(model).logits([Row("a", [1, 2], [token])])


def lora(model, rank=3):
    layer = "model.layers.1.mlp.down_proj"
    out, into = model.get_submodule(layer).weight.shape
    return layer, {
        f"{layer}.lora_A.weight": torch.randn(rank, into),
        f"{layer}.lora_B.weight": torch.randn(out, rank),
    }


def test_deltas_are_merged_once_and_with_their_scale(model):
    layer, tensors = lora(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    merge(model, tensors, 2.0)
    delta = 2.0 * tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{layer}.weight"}
    torch.testing.assert_close(model.get_submodule(layer).weight, before[f"{layer}.weight"] + delta)


def test_deltas_that_do_not_fit_are_refused(model):
    layer, tensors = lora(model)
    a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
    for wrong in (
        {a: tensors[a]},
        {**tensors, "bias": torch.ones(1)},
        {a: tensors[a][:, :-1], b: tensors[b]},
        {name.replace("layers.1", "layers.2"): t for name, t in tensors.items()},
    ):
        with pytest.raises(ArtifactError):
            merge(model, wrong, 1.0)


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_number_of_blocks_that_the_model_does_not_have_is_refused(folder, blocks):
    with pytest.raises(ArtifactError, match="blocks"):
        beginning(folder, blocks)


def test_the_worker_subtracts_what_its_artifact_says(folder, model, tmp_path):
    _, tensors = lora(model)
    facts = {"blocks": 2, "rank": 3, "alpha": 6.0}
    made = artifacts.write(tmp_path / "a", "logit_difference", "0" * 64, tensors=tensors, facts=facts)
    method = LogitDifference()
    table = method.load(made.tensors(), {**made.manifest.facts, "model": folder})
    merge(model, tensors, 2.0)
    (prompt,), base = texts(9), torch.randn(1, VOCABULARY)
    new = method.rescore(base, [Row("r", prompt, [3])], {**ULD, "filter": 0.5}, table)
    expected = difference(base, at_once(model, [*prompt, 3]).unsqueeze(0), {**ULD, "filter": 0.5})
    torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(new, base)
