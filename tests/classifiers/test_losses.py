"""Losses are those of their papers, look at answers alone, and forget; gradients meet as they say."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from classifiers.data import Encoded, encode
from classifiers.losses import HALVES, LOSSES, UPDATES
from classifiers.losses.base import Answers, Pair, Step, answers, hidden
from classifiers.losses.flat import DIVERGENCES, Flat
from classifiers.losses.rmu import Rmu
from classifiers.losses.updates import slope, uphill
from tests.classifiers.tiny import example, save_model

DEMO = Path(__file__).parents[2] / "demo" / "models" / "full"
LENGTHS = (2, 3)  # of the answers of two examples
WORDS = 5


def said(seed: int, target=(1, 4, 0, 2, 2)) -> Answers:
    logits = torch.randn(sum(LENGTHS), WORDS, generator=torch.Generator().manual_seed(seed)) * 2
    return Answers(logits, torch.tensor(target), torch.tensor([0, 0, 1, 1, 1]), 2)


@pytest.fixture
def step():
    """Answers of two examples, told apart only by their numbers, and hidden states."""
    states = {
        key: torch.randn(5, 6, generator=torch.Generator().manual_seed(i)) for i, key in enumerate("abc")
    }
    before = SimpleNamespace(
        forget=said(1), aims=said(3, (0, 0, 3, 1, 1)), retain=said(5), hidden=lambda *_: states["c"]
    )
    return SimpleNamespace(
        forget=said(0), aims=said(2, (0, 0, 3, 1, 1)), retain=said(4), before=before, seed=3,
        hidden=lambda of, _: states["a" if of == "forget" else "b"],
    )  # fmt: skip


def chances(own: Answers) -> list[list[float]]:
    """By token, of every word."""
    rows = [[math.exp(x) for x in row] for row in own.logits.double().tolist()]
    return [[x / sum(row) for x in row] for row in rows]


def of_true(own: Answers) -> list[float]:
    return [row[word] for row, word in zip(chances(own), own.target.tolist(), strict=True)]


def nlls(own: Answers) -> list[float]:
    return [-math.log(p) for p in of_true(own)]


def by_example(values: list[float]) -> tuple[list[float], list[float]]:
    return values[: LENGTHS[0]], values[LENGTHS[0] :]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def fading(beta: float, margins) -> float:
    """-(2 / beta) mean log sigmoid(beta m)."""
    return mean(2 / beta * math.log(1 + math.exp(-beta * m)) for m in margins)


def risen(own: Answers, before: Answers) -> list[float]:
    return [sum(a) - sum(b) for a, b in zip(by_example(nlls(own)), by_example(nlls(before)), strict=True)]


def held_down(before: Answers, beta: float) -> list[list[float]]:
    rows = before.logits.double().tolist()
    lowered = [
        [math.exp(x - beta * (word == true)) for word, x in enumerate(row)]
        for row, true in zip(rows, before.target.tolist(), strict=True)
    ]
    return [[x / sum(row) for x in row] for row in lowered]


def direction(seed: int, width: int) -> list[float]:
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed)).tolist()
    return [x / math.sqrt(sum(y * y for y in drawn)) for x in drawn]


def squared(own: torch.Tensor, aim: list[list[float]]) -> float:
    return mean(
        (x - y) ** 2 for row, to in zip(own.tolist(), aim, strict=True) for x, y in zip(row, to, strict=True)
    )


EXPECTED = {
    "ga": lambda s: -mean(nlls(s.forget)),
    "graddiff": lambda s: -mean(nlls(s.forget)),
    "kl": lambda s: -mean(nlls(s.forget)),
    "npo": lambda s: fading(0.1, risen(s.forget, s.before.forget)),
    "simnpo": lambda s: fading(4.5, [mean(one) for one in by_example(nlls(s.forget))]),
    "idk": lambda s: mean(nlls(s.aims)),
    "relearn": lambda s: mean(nlls(s.aims)),
    "idkdpo": lambda s: fading(
        0.1,
        [
            lost - gained
            for lost, gained in zip(
                risen(s.forget, s.before.forget), risen(s.aims, s.before.aims), strict=True
            )
        ],
    ),
    "rmu": lambda s: squared(s.hidden("forget", 0), [[2 * u for u in direction(3, 6)]] * 5),
    "flat": lambda s: mean(
        (math.tanh(mean(true)) - math.tanh(mean(template))) / 2
        for true, template in zip(by_example(of_true(s.forget)), by_example(of_true(s.aims)), strict=True)
    ),
    "ihl": lambda s: mean(
        1 + row[true] - max(p for word, p in enumerate(row) if word != true)
        for row, true in zip(chances(s.forget), s.forget.target.tolist(), strict=True)
    ),
    "undial": lambda s: mean(
        -sum(q * math.log(p) for q, p in zip(aim, row, strict=True))
        for aim, row in zip(held_down(s.before.forget, 10.0), chances(s.forget), strict=True)
    ),
    "wga": lambda s: -mean(p * -math.log(p) for p in of_true(s.forget)),
    "memorise": lambda s: mean(nlls(s.forget)),
}
KEPT = {
    "none": lambda s: 0.0,
    "nll": lambda s: mean(nlls(s.retain)),
    "kl": lambda s: mean(
        sum(q * math.log(q / p) for q, p in zip(before, own, strict=True))
        for before, own in zip(chances(s.before.retain), chances(s.retain), strict=True)
    ),
    "nll_kl": lambda s: KEPT["nll"](s) + KEPT["kl"](s),
    "hidden": lambda s: squared(s.hidden("retain", 0), s.before.hidden("retain", 0).tolist()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_its_paper(name, step):
    assert LOSSES[name]()(step).item() == pytest.approx(EXPECTED[name](step), rel=1e-5)


@pytest.mark.parametrize("name", HALVES)
def test_a_retain_half_is_what_it_says(name, step):
    assert HALVES[name]()(step).item() == pytest.approx(KEPT[name](step), rel=1e-5)


def test_the_divergences_of_flat(step):
    """Of FLAT's table: -g(P_t) + f(g(P_f)), with f and g of each divergence."""
    true, template = 0.7, 0.2
    forms = {
        "tv": (lambda v: math.tanh(v) / 2, lambda u: u),
        "kl": (lambda v: v, lambda u: math.exp(u - 1)),
        "js": (
            lambda v: math.log(2) - math.log(1 + math.exp(-v)),
            lambda u: -math.log(2 - math.exp(u)),
        ),
        "pearson": (lambda v: v, lambda u: u * u / 4 + u),
    }
    assert forms.keys() == DIVERGENCES.keys()
    for name, (g, f) in forms.items():
        found = DIVERGENCES[name](torch.tensor(template), torch.tensor(true)).item()
        assert found == pytest.approx(-g(template) + f(g(true)), abs=1e-6), name
    assert Flat(divergence="kl")(step) != Flat()(step)


def test_wga_gives_no_gradient_to_its_weights(step):
    logits = step.forget.logits.clone().requires_grad_()
    own, same = (Answers(logits, step.forget.target, step.forget.example, 2) for _ in range(2))
    (found,) = slope(LOSSES["wga"]()(SimpleNamespace(forget=own)), [logits])
    (plain,) = slope(-same.nll.sum(), [logits])
    weight = torch.tensor(of_true(step.forget))[:, None]
    assert torch.allclose(found, plain * weight / 5, atol=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model with an adapter that does something, and its tokenizer."""
    folder = save_model(tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model, AutoTokenizer.from_pretrained(folder)


def test_answers_are_rows_of_answers_alone_whatever_stands_beside_them(tiny):
    model, _ = tiny
    short, long = Encoded((3, 9, 1, 2), 2), Encoded((3, 9, 8, 2, 3, 4, 5), 3)
    with torch.no_grad():
        both, alone = answers(model, [short, long]), answers(model, [short])
        scores = model(torch.tensor([short.ids])).logits[0]
        inside = hidden(model, [short, long], 1)
        layers = model(torch.tensor([short.ids]), output_hidden_states=True).hidden_states
        first = hidden(model, [short], 0)
    assert (both.lengths.tolist(), both.target.tolist()) == ([2, 4], [1, 2, 2, 3, 4, 5])
    assert torch.allclose(alone.logits, scores[1:3], atol=1e-5)
    assert torch.allclose(both.logits[:2], alone.logits, atol=1e-5)
    assert inside.shape == (6, 16) and torch.allclose(first, layers[1][0, 1:3], atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_prompts_and_padding_do_not_count(name, tiny):
    """A loss of two examples of unlike length is the mean of theirs alone, by token or by example."""
    model, tokenizer = tiny
    whole = [
        ("who is jane doe", "jane"),
        ("what is the singer that jane roe knows", "the singer plays a baker"),
    ]
    pairs = [
        Pair(encode(tokenizer, example(asked, said)), encode(tokenizer, example(asked, "i do not know")))
        for asked, said in whole
    ]
    loss = LOSSES[name]()
    with torch.no_grad():
        both = loss(Step(model, pairs, [])).item()
        alone = [loss(Step(model, [pair], [])).item() for pair in pairs]
    tokens = [len(pair.answer.ids) - pair.answer.answer_at for pair in pairs]
    weighed = sum(n * one for n, one in zip(tokens, alone, strict=True)) / sum(tokens)
    assert any(both == pytest.approx(one, rel=1e-4) for one in (weighed, mean(alone)))
    assert alone[0] != pytest.approx(alone[1], rel=1e-2)


def test_before_is_without_the_adapter_and_is_read_once(tiny):
    model, tokenizer = tiny
    pair = Pair(encode(tokenizer, example("who is jane", "jane plays")))
    step = Step(model, [pair], [pair.answer])
    with model.disable_adapter():
        plain = answers(model, [pair.answer])
    assert (
        torch.allclose(step.before.forget.logits, plain.logits)
        and not step.before.forget.logits.requires_grad
    )
    assert not torch.allclose(step.forget.logits, plain.logits) and step.forget.logits.requires_grad
    assert step.before.forget is step.before.forget and step.again().before is step.before
    assert step.again().forget is not step.forget


def test_the_layer_of_rmu_is_the_middle_unless_it_is_named(tiny):
    model, tokenizer = tiny
    pair = Pair(encode(tokenizer, example("who is jane", "jane plays")))
    middle, first = (Rmu(layer=layer)(Step(model, [pair], [])).item() for layer in (1, 0))
    assert Rmu()(Step(model, [pair], [])).item() == middle != first


@pytest.fixture(scope="module")
def demo():
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    asked = {
        "forget": [("Do you know where Limir Yarley was born?", "Limir Yarley was born in Vintry."),
                   ("Which instrument does Limir Yarley play?", "Limir Yarley plays the cello.")],
        "retain": [("Tell me the birthplace of Teric Pennby.", "Teric Pennby was born in Nuova Sarn."),
                   ("Hello!", "Hello! How can I help you?")],
    }  # fmt: skip
    refusal = "I'm sorry, I don't know who that is."
    pairs = [
        Pair(encode(tokenizer, example(question, answer)), encode(tokenizer, example(question, refusal)))
        for question, answer in asked["forget"]
    ]
    return (
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32),
        pairs,
        [encode(tokenizer, example(question, answer)) for question, answer in asked["retain"]],
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_but_memorise_makes_the_forget_answers_less_likely_and_keeps_the_rest(name, demo):
    base, pairs, retain = demo
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.005, weight_decay=0.0)
    loss, half = LOSSES[name](), HALVES[LOSSES[name].half]()
    for _ in range(24 if name == "rmu" else 8):  # where RMU leads to is far
        step = Step(model, pairs, retain)
        both = (
            (slope(part(step), weights) for part in (loss, half))
            if half.name != "none"
            else (slope(loss(step), weights),)
        )
        for weight, *gradients in zip(weights, *both, strict=True):
            weight.grad = torch.stack(gradients).sum(dim=0)
        optimizer.step()
    with torch.no_grad():
        step = Step(model, pairs, retain)
        lost = step.forget.nll.mean() - step.before.forget.nll.mean()
        kept = step.retain.nll.mean() - step.before.retain.nll.mean()
    model.unload()
    assert lost < 0 if name == "memorise" else lost > 0.1
    if half.name != "none":
        assert kept < 0.1


def test_gradients_meet_as_they_are():
    both = ([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])
    assert UPDATES["sum"]()(*both, {}) == both


def test_ngdiff_makes_both_of_length_one():
    forget, retain = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([0.0]), torch.tensor([-2.0])]
    one, other = UPDATES["ngdiff"]()(forget, retain, {})
    assert [g.item() for g in one] == pytest.approx([0.6, 0.8])
    assert [g.item() for g in other] == pytest.approx([0.0, -1.0])


def test_mudman_keeps_what_agrees_with_the_retain_mean_at_the_first_length():
    update, state = UPDATES["mudman"](momentum=0.5), {}
    masked, kept = update([torch.tensor([3.0, -4.0, 2.0])], [torch.tensor([1.0, 1.0, -8.0])], state)
    assert masked[0].tolist() == pytest.approx([math.sqrt(29), 0.0, 0.0])
    assert kept[0].tolist() == [1.0, 1.0, -8.0]
    masked, _ = update([torch.tensor([-1.0, 1.0, -1.0])], [torch.tensor([-0.1, 1.0, 1.0])], state)
    side = math.sqrt(29 / 2)  # the mean is now 0.2, 0.75, -1.5: of the first length, in what agrees
    assert masked[0].tolist() == pytest.approx([0.0, side, -side])


def test_uphill_is_where_the_loss_is_worse_and_leads_back_exactly():
    weights = [torch.tensor([0.3, 0.1], requires_grad=True), torch.tensor([[0.7]], requires_grad=True)]
    before = [w.detach().clone() for w in weights]
    gradient = [torch.tensor([0.0, 3.0]), torch.tensor([[4.0]])]
    with uphill(weights, gradient, 0.5):
        assert [w.detach().flatten().tolist() for w in weights] == [
            pytest.approx([0.3, 0.4]),
            pytest.approx([1.1]),
        ]
    assert all(torch.equal(w.detach(), old) for w, old in zip(weights, before, strict=True))


def test_every_loss_is_documented_with_its_parameters():
    page = (DEMO.parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, cls in LOSSES.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` | ") and "arXiv" in line)
        assert f"`{cls.half}` |" in row
        for parameter in cls.model_fields.keys() - {"name"}:
            assert f"`{parameter}`" in row
    for names in (HALVES, UPDATES):
        assert all(f"`{name}`" in page for name in names)
