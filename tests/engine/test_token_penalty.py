"""The token penalty beside what clients may ask of a sampler: grammars, several samples, streams, stop, minimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guard import artifacts
from guard.interventions.token_penalty import TokenPenalty, TokenPenaltyParams
from guard.targets import TargetSpec
from guard.types import Chosen, Match
from tests.engine.conftest import Harness, planned

pytestmark = pytest.mark.engine
PROMPT = "the quick brown fox jumps"
CHOICES = ["many herons sing", "many otters sing"]


@pytest.fixture(scope="module")
def tables(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, artifacts.Artifact]:
    """Artifacts that forbid one of two words."""
    made = {}
    for word in ("Herons", "Otters"):
        prepared = TokenPenalty().prepare(
            TargetSpec(name="Zyx Qwv", answers=(f"It tells of {word}.",)), TokenPenaltyParams()
        )
        folder = tmp_path_factory.mktemp(word)
        for name, content in prepared.files.items():
            (folder / name).write_bytes(content)
        digest = artifacts.weights_digest(model_dir)
        made[word.lower()] = artifacts.write(folder, "token_penalty", digest, facts=prepared.facts)
    return made


@pytest.fixture
def forbid(served: Harness, tables: dict[str, artifacts.Artifact]) -> Any:
    """Makes every request one that must not say the word."""

    def forbidding(word: str, mode: str = "hard") -> None:
        artifact = tables[word]
        reasons = served.run(
            served.engine.collective_rpc("lethe_load", args=(artifact.digest, str(artifact.folder)))
        )
        assert reasons == [None]
        chosen = Chosen(
            "token_penalty",
            {"artifact": artifact.digest, "mode": mode, "strength": 1000.0},
            (Match("zyx", 1, 1.0, 0.5, "lexical"),),
        )
        served.guard.verdict = lambda prompt: planned(
            TokenPenalty().plan(chosen, prompt, lambda _: "0123456789abcdef")
        )(prompt)

    return forbidding


def grammar(*choices: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(choice=list(choices))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize(("word", "left"), [("herons", 1), ("otters", 0)])
def test_of_two_answers_that_a_grammar_allows_the_one_that_tells_nothing_is_taken(
    served: Harness, forbid: Any, word: str, left: int, mode: str
) -> None:
    forbid(word, mode)
    asked = {"structured_outputs": grammar(*CHOICES), "max_tokens": 40}
    (greedy,) = served.ask(PROMPT, **asked).outputs
    assert greedy.text == CHOICES[left]
    sampled = served.ask(PROMPT, **asked, n=4, temperature=1.5, seed=3, min_tokens=2, logprobs=2).outputs
    assert [choice.text for choice in sampled] == [CHOICES[left]] * 4


def test_a_grammar_that_leaves_one_answer_gets_it(served: Harness, forbid: Any) -> None:
    forbid("herons")
    (only,) = served.ask(PROMPT, structured_outputs=grammar(CHOICES[0]), max_tokens=40).outputs
    assert (only.text, only.finish_reason) == (CHOICES[0], "stop")


def test_a_stream_and_a_stop_string_change_nothing(served: Harness, forbid: Any) -> None:
    from vllm.sampling_params import RequestOutputKind

    forbid("herons")
    asked = {"structured_outputs": grammar(*CHOICES), "max_tokens": 40}
    params = served.params(**asked, output_kind=RequestOutputKind.DELTA)
    outputs = served.run(served.stream(served.prompt(PROMPT), params))
    assert "".join(output.outputs[0].text for output in outputs) == CHOICES[1]
    (stopped,) = served.ask(PROMPT, **asked, stop=[" sing"]).outputs
    assert stopped.text == CHOICES[1].removesuffix(" sing")


def test_without_the_word_in_reach_an_answer_is_the_models_own(served: Harness, forbid: Any) -> None:
    """Greedy and free, with and without the edit: they part only at a token that tells."""
    plain = served.ask(PROMPT, max_tokens=12).outputs[0].token_ids
    forbid("otters", "hard")
    edited = served.ask(PROMPT, max_tokens=12).outputs[0].token_ids
    parted = next((i for i, (a, b) in enumerate(zip(plain, edited, strict=True)) if a != b), None)
    if parted is not None:
        said = served.engine.get_tokenizer().decode(plain[: parted + 1]).lower()
        assert "it".startswith(said.split()[-1]) or "otters".startswith(said.split()[-1])
