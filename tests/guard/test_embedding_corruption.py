"""The noise is what it says, and a pure function of seed, position and dimension."""

import re
import time

import pytest
import torch

from guard import interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions.embedding_corruption import EmbeddingCorruption, gaussian
from guard.types import Chosen, Match, Message, Prompt, Span

SEED = 0x0123456789ABCDEF
GAUSSIAN = {"strength": 2.0, "dims": "all", "noise": "gaussian"}
TEXT = "Who is Jane Doe really?"
PROMPT = Prompt(
    TEXT, tuple(range(6)), (Span(0, 3), Span(3, 6), Span(6, 11), Span(11, 15), Span(15, 22), Span(22, 23))
)


def noise_at(positions, dims, seed=SEED):
    return gaussian(torch.full_like(positions, seed), positions, dims)


def edit(x, positions, params):
    return EmbeddingCorruption().edit(x, positions, torch.full_like(positions, SEED), None, params, None)


def plan(spans, prompt=PROMPT, **params):
    matches = tuple(Match(f"t{i}", 1, 1.0, 0.5, "lexical", (s,) if s else ()) for i, s in enumerate(spans))
    chosen = Chosen("embedding_corruption", params, matches)
    return EmbeddingCorruption().plan(chosen, prompt, lambda target: f"{target:0>16}".replace("t", "a")).edits


def test_noise_is_standard_normal_and_uncorrelated():
    noise = noise_at(torch.arange(2000), 64).double()
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    for shifted in (noise[1:, :] * noise[:-1, :], noise[:, 1:] * noise[:, :-1]):
        assert abs(shifted.mean()) < 0.01


def test_noise_depends_on_position_and_seed_only():
    whole = noise_at(torch.arange(500), 96)
    for start, end in ((0, 1), (1, 8), (8, 200), (200, 500)):
        assert torch.equal(noise_at(torch.arange(start, end), 96), whole[start:end])
    scattered = torch.tensor([499, 3, 77])
    assert torch.equal(noise_at(scattered, 96), whole[scattered])
    assert torch.equal(noise_at(torch.arange(500), 7), whole[:, :7])
    assert not torch.equal(noise_at(torch.arange(500), 96, SEED - 1), whole)
    torch.manual_seed(1)
    assert torch.equal(noise_at(torch.arange(500), 96), whole)


def test_an_edit_is_the_same_for_any_chunking():
    x, positions = torch.randn(300, 48), torch.arange(10, 310)
    whole = edit(x, positions, GAUSSIAN)
    bounds = ((0, 1), (1, 17), (17, 300))
    parts = [edit(x[a:b], positions[a:b], GAUSSIAN) for a, b in bounds]
    assert torch.equal(torch.cat(parts), whole)


def test_an_edit_leaves_its_input_alone():
    x = torch.randn(3, 8)
    kept = x.clone()
    edit(x, torch.arange(3), GAUSSIAN)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dims", [1, 8, "all"])
def test_strength_is_the_ratio_of_noise_to_signal_whatever_the_dimensions(dims):
    x = torch.randn(4000, 32) * torch.rand(4000, 1)
    moved = edit(x, torch.arange(4000), {**GAUSSIAN, "dims": dims}) - x
    ratio = (moved.norm(dim=1) / x.norm(dim=1)).square().mean().sqrt()
    assert abs(ratio - 2.0) < 0.1
    untouched = moved[:, 32 if dims == "all" else dims :]
    assert not untouched.any()


@pytest.mark.parametrize(("noise", "expected"), [("flip", -1.0), ("zero", 0.0)])
def test_flip_and_zero_change_the_first_dimensions(noise, expected):
    x = torch.ones(2, 4)
    out = edit(x, torch.arange(2), {"strength": 1.0, "dims": 3, "noise": noise})
    assert out.tolist() == [[expected] * 3 + [1.0]] * 2


def test_each_row_has_the_noise_of_its_own_request():
    x, positions, seeds = torch.randn(4, 16), torch.tensor([5, 6, 5, 6]), torch.tensor([SEED, SEED, 7, 7])
    both = EmbeddingCorruption().edit(x, positions, seeds, None, GAUSSIAN, None)
    for part in (slice(0, 2), slice(2, 4)):
        alone = EmbeddingCorruption().edit(x[part], positions[part], seeds[part], None, GAUSSIAN, None)
        assert torch.equal(both[part], alone)


def test_the_tokens_of_the_matched_spans_are_corrupted():
    (edit,) = plan([Span(7, 15)])
    assert edit.positions == (2, 3)
    assert (edit.site, edit.layer, edit.method) == ("embedding", None, "embedding_corruption")
    full = {"strength": 10.0, "dims": "all", "noise": "gaussian", "tokens": "spans", "artifact": None}
    assert dict(edit.params) == full


@pytest.mark.parametrize(
    ("tokens", "expected"), [("spans", (0, 3)), ("window", (0, 1, 2, 3)), ("prompt", (0, 1, 2, 3, 4))]
)
def test_which_tokens(tokens, expected):
    match = Match("t", 1, 1.0, 0.5, "lexical", (Span(0, 3), Span(12, 15)))
    chosen = Chosen("embedding_corruption", {"tokens": tokens}, (match,))
    (edit,) = EmbeddingCorruption().plan(chosen, PROMPT, lambda _: SEED).edits
    assert edit.positions == expected


SYSTEM = "You are Ada, made in Turin."
EARLIER = "Has Odo Marl been to Nuova Sarn?"
ASKED = "Please tell: did Jane Doe's sister meet Teric Pennby in Vintry? Paris is too far."
RENDERED = "".join(
    f"<|im_start|>{role}\n{text}<|im_end|>\n"
    for role, text in (("system", SYSTEM), ("user", EARLIER), ("assistant", "Yes, Odo has."), ("user", ASKED))
)


def read(text, messages=()):
    """A prompt whose tokens are its words and signs."""
    offsets = tuple(Span(*match.span()) for match in re.finditer(r"\w+|[^\w\s]", text))
    return Prompt(text, tuple(range(len(offsets))), offsets, messages)


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (
            Message("system", SYSTEM),
            Message("user", EARLIER),
            Message("assistant", "Yes, Odo has."),
            Message("user", ASKED),
        ),
    ],
)
def test_entities_are_the_match_and_the_names_in_its_message(messages):
    prompt = read(RENDERED, messages)
    at = RENDERED.index("Jane Doe")
    (edit,) = plan([Span(at, at + 8)], prompt, tokens="entities")
    words = [RENDERED[prompt.offsets[i].start : prompt.offsets[i].end] for i in edit.positions]
    assert words == ["Jane", "Doe", "Teric", "Pennby", "Vintry", "Paris"]


def test_entities_are_at_least_what_matched():
    prompt = read("who is jane doe of Vintry")
    assert plan([Span(7, 15)], prompt, tokens="entities")[0].positions == (2, 3, 5)
    assert plan([Span(7, 15)], read("who is jane doe"), tokens="entities")[0].positions == (2, 3)
    assert plan([None], prompt, tokens="entities")[0].positions == (0, 1, 2, 3, 4)


def test_many_names_in_a_long_prompt_are_planned_quickly():
    prompt = read("then Jane Doe met Ada Byron " * 5_000)
    spans = tuple(Span(match.start(), match.end()) for match in re.finditer("Jane Doe", prompt.text))
    chosen = Chosen(
        "embedding_corruption", {"tokens": "entities"}, (Match("t", 1, 1.0, 0.5, "lexical", spans),)
    )
    started = time.perf_counter()
    (edit,) = EmbeddingCorruption().plan(chosen, prompt, lambda _: "0" * 16).edits
    assert len(edit.positions) == 4 * 5_000
    assert time.perf_counter() - started < 5.0  # each span beside each token takes many times that


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ((), ()),
        (((0, 3),), (0,)),
        (((3, 3),), ()),
        (((4, 4),), (1,)),
        (((2, 4), (3, 12)), (0, 1, 2, 3)),
        (((11, 12), (0, 1), (0, 2)), (0, 3)),
        (((22, 30),), (5,)),
        (((23, 30),), ()),
    ],
)
def test_a_token_is_in_a_span_with_which_it_shares_a_character(spans, expected):
    assert PROMPT.tokens_in(tuple(Span(*span) for span in spans)) == expected


def test_every_target_has_its_own_edit_and_seed():
    first, second = plan([Span(0, 3), Span(7, 15)])
    assert (first.seed, second.seed) == ("00000000000000a0", "00000000000000a1")
    assert (first.positions, second.positions) == ((0,), (2, 3))


def test_without_a_span_in_the_prompt_all_tokens_but_the_last_are_corrupted():
    assert plan([None])[0].positions == (0, 1, 2, 3, 4)
    assert plan([None], Prompt("hi", (7,), (Span(0, 2),)))[0].positions == (0,)
    assert plan([None], Prompt("")) == ()


@pytest.mark.parametrize(
    "params",
    [
        {"sigma": 5},
        {"strength": 0},
        {"strength": float("inf")},
        {"dims": 0},
        {"dims": True},
        {"dims": "some"},
        {"noise": "pink"},
        {"tokens": "all"},
    ],
)
def test_unknown_parameters_are_refused(params):
    with pytest.raises(BadRequest, match="embedding_corruption"):
        interventions.check_params("embedding_corruption", params)


DIGEST = "ab" * 32
FOUND = {"strength": 3.5, "dims": 4, "noise": "gaussian", "tokens": "window"}


def test_an_artifact_brings_the_parameters_that_were_found():
    match = Match("t", 1, 1.0, 0.5, "lexical", (Span(0, 3), Span(12, 15)))
    chosen = Chosen("embedding_corruption", {"artifact": DIGEST}, (match,), {"found": FOUND})
    (edit,) = EmbeddingCorruption().plan(chosen, PROMPT, lambda _: "0" * 16).edits
    assert (edit.positions, edit.table) == ((0, 1, 2, 3), DIGEST)
    assert {**edit.params, "artifact": None} == {**FOUND, "artifact": None}


def test_what_an_artifact_brings_cannot_be_given_beside_it():
    filled = interventions.check_params("embedding_corruption", {"artifact": DIGEST}).model_dump()
    assert interventions.check_params("embedding_corruption", filled).artifact == DIGEST
    with pytest.raises(BadRequest, match="leave them out"):
        interventions.check_params("embedding_corruption", {"artifact": DIGEST, "strength": 3})


def test_factors_multiply_the_noise_of_their_dimension():
    x, positions = torch.randn(5, 8), torch.arange(5)
    seeds = torch.full_like(positions, SEED)
    factors = EmbeddingCorruption().load({"factors": torch.arange(8)}, {})
    plain, scaled = (
        EmbeddingCorruption().edit(x, positions, seeds, None, GAUSSIAN, table) - x
        for table in (None, factors)
    )
    assert torch.allclose(scaled, plain * torch.arange(8), atol=1e-5)
    assert EmbeddingCorruption().load({}, {}) is None


@pytest.mark.parametrize(
    "factors", [torch.ones(2, 2), torch.tensor([1.0, -1.0]), torch.tensor([float("nan")])]
)
def test_factors_that_are_none_are_refused(factors):
    with pytest.raises(ArtifactError, match="factors"):
        EmbeddingCorruption().load({"factors": factors}, {})
