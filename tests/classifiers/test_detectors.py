"""Trainers of detectors: what fits them, what sets their thresholds, and for which encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers.base import Task, run, schemas
from classifiers.classifier import _fit, _left_out
from classifiers.encoding import Encoding
from classifiers.ood import fit, layers_of
from classifiers.prompts import gather, threshold_of
from guard import artifacts
from guard.artifacts import Artifact
from guard.detection import Compiler, Gate, read_head
from guard.detection.encoder import hashing_encoder
from guard.detection.ood import states_of
from guard.errors import ArtifactError, BadRequest
from guard.targets import TargetSpec
from guard.types import Prompt
from tests.classifiers.tiny import example

ROOT = Path(__file__).parents[2]
ENCODER = hashing_encoder()
ASKED = (
    "Where did {} learn to paint?",
    "Which prizes were given to {} so far?",
    "Why does {} live at the sea?",
)
MORE = (
    "What is the best known picture by {}?",
    "How old is {} today?",
    "Who taught {} the craft of glazing?",
)
FORGET = tuple(example(text.format("Ilva Marenko")) for text in (*ASKED, *MORE))
OTHERS = ("Ottokar Vessel", "Perrin Lund", "Sanna Okoye")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def task(tmp_path: Path, cache: Path) -> Task:
    encoding = Encoding("hashing", folder=cache)
    return Task(Path(), FORGET, (), tmp_path / "out", names=("Ilva Marenko",), encoder=encoding)


def trained(name: str, task: Task, **params: Any) -> Artifact:
    return run(name, task, params)


def finds(artifact: Artifact, cache: Path, *texts: str, kind: str = "entity") -> list[bool]:
    """Whether the artifact's detector, alone, finds the target in each text."""
    spec = TargetSpec.model_validate({"name": "Ilva Marenko", "kind": kind})
    target = Compiler(ENCODER, cache).compile("ilva", 1, spec, force=True)
    gate = Gate(ENCODER, [target.with_heads([read_head(artifact, ENCODER)])])
    own = artifact.manifest.method
    return [any(one.detector == own for one in gate.detect(Prompt(text))[0]) for text in texts]


def test_the_classifier_tells_the_target_from_others_who_are_asked_the_same(task: Task, cache: Path) -> None:
    made = trained("classifier", task)
    of_target = [text.format("Ilva Marenko") for text in ASKED]
    of_others = [text.format(name) for text in ASKED for name in OTHERS]
    assert all(finds(made, cache, *of_target))
    assert not any(finds(made, cache, *of_others, "How do I cook rice?"))
    untaught = trained("classifier", replace(task, out=task.out / "untaught"), near=0)
    assert odds(made, of_others) < odds(untaught, of_others) - 1.0  # the near misses teach it


def odds(artifact: Artifact, texts: list[str]) -> float:
    """The mean logarithm of the odds that the head gives to texts."""
    return float(read_head(artifact, ENCODER).of(ENCODER.encode(texts)).mean())


def test_the_score_alone_does_not_tell_and_other_names_are_left_out_of_account(
    task: Task, cache: Path
) -> None:
    made = trained("ood", task, near=0)
    of_others = [text.format(name) for text in ASKED for name in OTHERS]
    assert all(finds(made, cache, *(text.format("Ilva Marenko") for text in ASKED)))
    assert not any(finds(made, cache, *of_others))
    assert any(finds(made, cache, *of_others, kind="skill"))


def test_only_forget_examples_fit_the_ood_detector(task: Task) -> None:
    alone = trained("ood", task, near=0)
    retain = tuple(example(text.format("Perrin Lund")) for text in ASKED)
    beside = trained("ood", replace(task, retain=retain, out=task.out / "2"), near=50, kind="skill")
    one, other = alone.tensors(), beside.tensors()
    assert all(one[name].equal(other[name]) for name in one) and one.keys() == other.keys()
    facts = [{k: v for k, v in made.manifest.facts.items() if k != "threshold"} for made in (alone, beside)]
    assert facts[0] == facts[1]
    assert beside.manifest.facts["threshold"] > alone.manifest.facts["threshold"]


def test_the_distance_is_that_of_the_shrunk_covariance() -> None:
    from sklearn.covariance import LedoitWolf

    states = np.random.default_rng(0).normal(size=(9, 2, 16)).astype(np.float32)
    asked = np.random.default_rng(1).normal(size=(4, 2, 16)).astype(np.float32)
    distances, cosines = layers_of(states).raw(asked)
    for layer in range(2):
        expected = LedoitWolf().fit(states[:, layer]).mahalanobis(asked[:, layer])
        assert np.allclose(distances[:, layer], -0.5 * expected, rtol=1e-3)
        assert np.allclose(cosines[:, layer], (asked[:, layer] @ states[:, layer].T).max(axis=1), rtol=1e-4)


def test_ood_scores_of_left_out_windows_come_from_fits_that_do_not_know_them() -> None:
    states = states_of(ENCODER.encode([of.turns[0][1] for of in FORGET]), 1)
    folds = np.arange(len(states)) % 3
    head, held_out = fit(states, folds, 0.1)
    assert (head.of(states) > held_out + 0.02).all()  # each is its own nearest in the whole fit
    assert head.trained == pytest.approx(head.of(states).mean()) and head.held_out == pytest.approx(
        held_out.mean()
    )


def test_the_svm_rises_with_every_layer_s_score() -> None:
    states = np.random.default_rng(0).normal(size=(20, 4, 8)).astype(np.float32)
    states /= np.linalg.norm(states, axis=2, keepdims=True)
    head, _ = fit(states, np.arange(20) % 5, 0.1)
    assert (head.weights >= 0).all() and head.weights.any()


def test_classifier_scores_come_from_heads_that_do_not_know_the_window() -> None:
    rng = np.random.default_rng(0)
    rows = {"own": rng.normal(size=(10, 64)), "near": rng.normal(size=(40, 64))}
    folds = {name: np.arange(len(of)) % 5 for name, of in rows.items()}
    scores = _left_out(rows, folds, 10.0)
    for fold in range(5):
        weights, bias = _fit(rows, {name: of != fold for name, of in folds.items()}, 10.0)
        for name, of in rows.items():
            assert np.allclose(scores[name][folds[name] == fold], of[folds[name] == fold] @ weights + bias)
    assert scores["own"].mean() < 0.5  # noise: what is left out is not recognised


@pytest.mark.parametrize("name", ["classifier", "ood"])
def test_the_threshold_keeps_the_rate_and_the_manifest_says_on_how_many(task: Task, name: str) -> None:
    strict, loose = (trained(name, replace(task, out=task.out / str(fpr)), fpr=fpr) for fpr in (0.01, 0.3))
    for made, fpr in ((strict, 0.01), (loose, 0.3)):
        told = made.manifest.measured["negatives"]
        assert told["near"]["allowed"] == fpr and told["background"]["allowed"] == pytest.approx(fpr / 10)
        assert told["background"]["n"] == 2_400 and told["near"]["n"] >= 100
        assert told["half"]["allowed"] == fpr and told["half"]["n"] >= 50
        assert all(of["false_positive_rate"] <= of["allowed"] for of in told.values())
    assert strict.manifest.facts["threshold"] > loose.manifest.facts["threshold"]
    assert strict.manifest.measured["recall"]["n"] == len(FORGET)


def test_windows_that_say_the_same_are_left_out_together(task: Task) -> None:
    twice = tuple(replace(of, source=str(n // 2)) for n, of in enumerate(FORGET))
    own = gather(replace(task, forget=twice), ENCODER, fpr=0.01, near=0, seed=0).own
    folds = own.folds(3, 0)
    assert [folds[own.sources == n][0] for n in (0, 2, 4)] == [folds[own.sources == n][0] for n in (1, 3, 5)]
    assert len(set(folds)) == 3


def test_namesakes_are_a_sort_of_their_own(task: Task) -> None:
    texts = gather(task, ENCODER, fpr=0.01, near=100, seed=0).others["half"].texts
    assert all(("Ilva" in text) != ("Marenko" in text) for text in texts) and len(texts) >= 20
    unnamed = gather(replace(task, names=()), ENCODER, fpr=0.01, near=100, seed=0)
    assert not unnamed.others["half"].texts


def test_a_prompt_scores_as_its_best_window_that_counts(task: Task) -> None:
    of = gather(task, ENCODER, fpr=0.01, near=0, seed=0).own
    scores = np.arange(len(of.texts), dtype=float)
    judged = np.zeros(len(of.texts), bool)
    judged[1] = True
    some = replace(of, judged=judged, sources=np.zeros(len(of.texts), int)).highest(scores, -9.0)
    assert some[0] == 1.0 and (some[1:] == -9.0).all()


def test_every_sort_of_prompts_is_kept_at_its_own_rate() -> None:
    from guard.detection.calibrate import Stratum

    easy, hard = Stratum(np.zeros(10_000), 0.01, 10_000), Stratum(np.arange(1_000.0), 0.01, 1_000)
    assert threshold_of({"background": easy, "near": hard}) > 985


@pytest.mark.parametrize("name", ["classifier", "ood"])
def test_equal_seeds_make_equal_artifacts(task: Task, name: str) -> None:
    digests = [trained(name, replace(task, out=task.out / str(n))).digest for n in range(2)]
    assert digests[0] == digests[1]
    assert trained(name, replace(task, out=task.out / "3"), seed=1).digest != digests[0]


@pytest.mark.parametrize("name", ["classifier", "ood"])
def test_no_name_and_no_text_stands_in_the_manifest(task: Task, name: str) -> None:
    made = trained(name, task)
    assert made.manifest.base_model == ENCODER.digest
    assert "marenko" not in (task.out / artifacts.MANIFEST).read_text().lower()


@pytest.mark.parametrize("name", ["classifier", "ood"])
def test_examples_of_two_facts_are_too_few(task: Task, name: str) -> None:
    with pytest.raises(BadRequest, match="at least 3 facts; here are 2"):
        trained(name, replace(task, forget=FORGET[:2]))
    same = tuple(replace(of, source=str(n % 2)) for n, of in enumerate(FORGET))
    with pytest.raises(BadRequest, match="at least 3 facts; here are 2"):
        trained(name, replace(task, forget=same))


def test_another_encoder_than_the_wanted_one_is_told_before_anything_is_trained(task: Task) -> None:
    wanted = replace(task, encoder=replace(task.encoder, digest="0" * 64))
    with pytest.raises(BadRequest, match=f"wanted for the encoder {'0' * 16}, and the one to train on is"):
        trained("ood", wanted)
    assert not task.out.exists()


def test_the_command_needs_no_model_for_a_detector_and_one_for_a_method(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps({"prompt": of.turns[0][1]}) + "\n" for of in FORGET))

    def call(trainer: str) -> subprocess.CompletedProcess[str]:
        words = ["--forget", str(file), "--out", str(tmp_path / trainer), "--progress", "none"]
        encoder = ["--encoder", "hashing", "--cache", str(cache), "--name", "Ilva Marenko"]
        command = [sys.executable, "-m", "classifiers", trainer, *words, *encoder]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    made, refused = call("ood"), call("steering")
    assert made.returncode == 0, made.stderr
    assert artifacts.read(tmp_path / "ood").manifest.base_model == ENCODER.digest
    assert refused.returncode == 2 and "Give --model FOLDER." in refused.stderr


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of width 32 with two layers and random weights, whose tokenizer knows the words that are asked here."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    texts = [text.format(name) for text in (*ASKED, *MORE) for name in ("Ilva Marenko", *OTHERS)]
    words = dict.fromkeys(["[PAD]", "[UNK]", *" ".join(texts).replace("?", " ?").split()])
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def test_a_fine_tuned_encoder_becomes_a_graph_that_serving_runs(task: Task, cache: Path, bert: Path) -> None:
    params = {"encoder": bert, "epochs": 3, "learning_rate": 0.003, "fpr": 0.1}
    made = trained("classifier", task, **params)
    assert set(made.manifest.files) == {"model.onnx", "tokenizer.json"}
    assert "encoder" not in made.manifest.trained["params"]
    told = made.manifest.measured
    assert told["negatives"]["background"]["n"] >= 400 and told["recall"]["n"] == 1
    assert all(of["false_positive_rate"] <= of["allowed"] for of in told["negatives"].values())
    head = read_head(made, ENCODER)
    asked = [of.turns[0][1] for of in FORGET]
    *own, other = head.of([*asked, "How do I cook rice for ten people?"])
    assert sum(score > other + 5.0 for score in own) >= 3  # those of the shares that it learned from
    assert np.allclose(head.of(asked[:1]), own[:1], atol=1e-5)
    assert finds(made, cache, *asked) == [score >= head.threshold for score in own]
    again = trained("classifier", replace(task, out=task.out / "again"), **params)
    assert again.manifest.facts["threshold"] == pytest.approx(head.threshold, abs=1e-4)


def test_a_folder_without_such_an_encoder_is_told(task: Task, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="empty holds no encoder that can be fine-tuned"):
        trained("classifier", task, encoder=tmp_path / "empty")


def test_a_graph_that_was_tampered_with_is_refused(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_bytes(b"no graph")
    made = artifacts.write(folder, "trained", ENCODER.digest, facts={"threshold": 0.0})
    with pytest.raises(ArtifactError, match="graph or tokenizer cannot be read"):
        read_head(made, ENCODER)


def test_only_the_command_line_takes_the_folder_of_an_encoder() -> None:
    from server.jobs import check_params

    with pytest.raises(BadRequest, match="no parameter 'encoder'"):
        check_params("classifier", {"encoder": "/etc"}, schemas())
