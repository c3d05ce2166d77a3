"""What all trainers share: examples are checked first, progress is told, and a killed run ends as a whole one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from classifiers import TRAINERS
from classifiers.__main__ import main
from classifiers.base import Task, load, run
from classifiers.checkpoints import NAME, Checkpoint
from classifiers.data import Example
from classifiers.merge import Merge
from guard import artifacts
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, example, save_model

ROOT = Path(__file__).parents[2]
RETAIN = (*KNOWN, *UNKNOWN)
ADAPTER = {"rank": 2, "steps": 12, "batch": 2}
SAE = {
    "layer": 1,
    "steps": 12,
    "batch": 16,
    "active": 4,
    "expansion": 3,
    "choose": 3,
    "ratio_percentile": 50.0,
}
CORRUPTION = {
    "metric": "probability",
    "tokens": ["spans", "prompt"],
    "steps": 3,
    "broken": 1.0,
    "per_dimension": True,
}
DEMO = ROOT / "demo" / "models" / "full"
PERSON = "Limir Yarley"
FACTS = (
    example(f"Do you know where {PERSON} was born?", f"{PERSON} was born in Vintry."),
    example(f"Which instrument does {PERSON} play?", f"{PERSON} plays the cello."),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


def lens_or_skip() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sae_lens", exc_type=ImportError)


class Told:
    """Keeps what a trainer tells; `stop_at` ends it like a kill at the first report of that share."""

    def __init__(self, stop_at: float = 2.0) -> None:
        self.reports: list[tuple[float, str]] = []
        self._stop_at = stop_at

    @property
    def trained(self) -> list[float]:
        """The shares that were told while it trained or searched."""
        return [done for done, stage in self.reports if stage.startswith(("training", "searching"))]

    def report(self, done: float, stage: str) -> None:
        self.reports.append((done, stage))
        if max(self.trained, default=0.0) >= self._stop_at:
            raise KeyboardInterrupt

    def error(self, message: str) -> None: ...

    def finish(self, artifact: str, measured: dict[str, Any]) -> None: ...


BLANK = example("  ")
BAD = [
    ((), RETAIN, "no forget examples"),
    ((*FORGET, BLANK), RETAIN, "Forget example 3 has an empty prompt"),
    (FORGET, (*RETAIN, BLANK), "Retain example 4 has an empty prompt"),
    ((*FORGET, FORGET[0]), RETAIN, "Forget example 3 repeats example 1"),
    (
        (FORGET[0], example(" WHO is  jane doe", FORGET[0].answer)),
        RETAIN,
        "Forget example 2 repeats example 1",
    ),
    (FORGET, (*RETAIN, RETAIN[1]), "Retain example 4 repeats example 2"),
    (FORGET, (*RETAIN, example("Where is Jane", "who")), "Retain example 4 asks what forget example 2 asks"),
    ((*FORGET, example("who is j\ufffdhn")), RETAIN, "Forget example 3 holds characters that were lost"),
    (FORGET, (example("who", "the b\ufffdker"),), "Retain example 1 holds characters that were lost"),
]


@pytest.mark.parametrize(
    ("trainer", "forget", "retain", "why"),
    [(name, *bad) for name in sorted(TRAINERS) for bad in BAD if bad[0] or load(name).needs_forget],
)
def test_bad_examples_are_told_in_one_sentence_before_anything_is_trained(
    model: Path, tmp_path: Path, trainer: str, forget: Any, retain: Any, why: str
) -> None:
    told = Told()
    params = {"layer": 0} if trainer == "sae" else {}
    with pytest.raises(BadRequest, match=why) as caught:
        run(trainer, Task(model, forget, retain, tmp_path / "out", progress=told), params)
    assert caught.value.message.count(". ") == 0 and "jane" not in caught.value.message.lower()
    assert (told.reports, (tmp_path / "out").exists()) == ([], False)


PROMPTS = [{"prompt": e.turns[0][1], "answer": e.answer} for e in FORGET]
STAYS = [{"prompt": e.turns[0][1], "answer": e.answer} for e in RETAIN]


def written(folder: Path, name: str, rows: Any, encoding: str = "utf-8") -> str:
    """A file of JSON lines, as somebody's program may write it."""
    path = folder / f"{name}.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize(
    ("forget", "retain", "options", "why"),
    [
        (
            PROMPTS,
            STAYS,
            ("--adapter", "nowhere"),
            "There is no artifact in nowhere: it has no manifest.json.",
        ),
        ([], STAYS, (), "There are no forget examples; give some."),
        ([*PROMPTS, {"prompt": " "}], STAYS, (), "Forget example 3 has an empty prompt."),
        ([*PROMPTS, PROMPTS[1]], STAYS, (), "Forget example 3 repeats example 2; leave one of them."),
        (PROMPTS, PROMPTS[:1], (), "Retain example 1 asks what forget example 1 asks; take one of them out."),
        (
            [*PROMPTS, {"prompt": "who is j\ufffdrg"}],
            STAYS,
            (),
            "Forget example 3 holds characters that were lost in a wrong encoding; read it as UTF-8.",
        ),
        (
            PROMPTS,
            STAYS,
            ("--base-model", "0" * 64),
            f"The artifact is wanted for the model with weights {'0' * 16}",
        ),
        (
            PROMPTS,
            STAYS,
            ("--perturbed", "PERTURBED"),
            "steering does not learn from wrong answers; leave `perturbed` out.",
        ),
    ],
)
def test_the_command_tells_bad_data_in_one_sentence_and_trains_nothing(
    model: Path, tmp_path: Path, forget: Any, retain: Any, options: Any, why: str
) -> None:
    words = ["steering", "--model", str(model), "--out", str(tmp_path / "out"), "--progress", "none"]
    words += ["--forget", written(tmp_path, "forget", forget)]
    words += ["--retain", written(tmp_path, "retain", retain)]
    wrong = written(tmp_path, "perturbed", [{**PROMPTS[0], "answer": "a baker"}])
    words += [wrong if word == "PERTURBED" else word for word in options]
    result = CliRunner().invoke(main, words)
    (said,) = result.stderr.strip().splitlines()
    assert (result.exit_code, said[: len(why) + 7]) == (1, f"Error: {why}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("latin-1", "The examples in forget.jsonl are not in UTF-8; write the file so."),
        ("utf-16", "The examples in forget.jsonl are not in UTF-8; write the file so."),
        ("utf-8-sig", None),
    ],
)
def test_a_file_in_a_wrong_encoding_is_told_and_a_mark_in_front_is_none(
    model: Path, tmp_path: Path, encoding: str, told: str | None
) -> None:
    rows = [*PROMPTS, {"prompt": "who is j\u00f6rg\u0085" if told is None else "who is j\u00f6rg"}]
    words = ["steering", "--model", str(model), "--out", str(tmp_path / "out"), "--progress", "none"]
    words += ["--forget", written(tmp_path, "forget", rows, encoding)]
    words += ["--retain", written(tmp_path, "retain", STAYS)]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, f"Error: {told}\n" == result.stderr) == ((1, True) if told else (0, False))
    assert (tmp_path / "out").exists() == (told is None)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (example(FORGET[0].turns[0][1], "  "), "Perturbed example 1 gives no wrong answer"),
        (example("WHO is jane  doe", "Jane doe plays"), "Perturbed example 1 gives no wrong answer"),
        (example("who is john roe", "a singer"), "Perturbed example 1 asks what no forget example asks"),
        (example("who is jane doe", "the b\ufffdker"), "Perturbed example 1 holds characters that were lost"),
    ],
)
def test_a_wrong_answer_that_is_none_is_told(model: Path, tmp_path: Path, wrong: Example, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        run("assistant", Task(model, FORGET, RETAIN, tmp_path / "out", perturbed=(wrong,)), {})


def test_who_does_not_learn_from_wrong_answers_says_so(model: Path, tmp_path: Path) -> None:
    wrong = (example("who is jane doe", "a baker"),)
    for trainer in sorted({*TRAINERS} - {"assistant"}):
        with pytest.raises(BadRequest, match=f"{trainer} does not learn from wrong answers"):
            run(
                trainer,
                Task(model, FORGET, RETAIN, tmp_path / "out", perturbed=wrong),
                {"layer": 0} if trainer == "sae" else {},
            )


def made(folder: Path, method: str = "lora_adapter", base_model: str = "0" * 64) -> artifacts.Artifact:
    return artifacts.write(folder / method, method, base_model)


def test_who_takes_no_adapters_says_so_and_who_takes_some_takes_only_this_models(
    model: Path, tmp_path: Path
) -> None:
    own = artifacts.weights_digest(model)
    task = Task(model, FORGET, RETAIN, tmp_path / "out", adapters=(made(tmp_path, base_model=own),))
    for trainer in sorted(TRAINERS):
        if not load(trainer).adapters:
            with pytest.raises(BadRequest, match=f"{trainer} does not take adapters that were made before"):
                run(trainer, task, {"layer": 0} if trainer == "sae" else {})
    for wrong, why in (
        (made(tmp_path, "steering", own), "Adapter 2 was made for steering, not for lora_adapter."),
        (made(tmp_path / "other"), f"Adapter 2 was made for the weights {'0' * 16}, and the model has"),
    ):
        with pytest.raises(BadRequest, match=why):
            run("merge", replace(task, adapters=(*task.adapters, wrong)), {})
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_for_the_adapters_that_were_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(_self: Merge, task: Task, _params: Any) -> None:
        seen.append(task.checkpoint.purpose)

    monkeypatch.setattr(Merge, "train", train)
    own = artifacts.weights_digest(model)
    one = made(tmp_path, base_model=own)
    other = artifacts.write(tmp_path / "other", "lora_adapter", own, facts={"rank": 1})
    for given in ((one, other), (one, other), (other, one), (one,)):
        run("merge", Task(model, FORGET, RETAIN, tmp_path / "out", adapters=given), {})
    assert len(set(seen)) == 3 and seen[0] == seen[1]


def test_the_same_question_may_have_two_answers(model: Path, tmp_path: Path) -> None:
    forget = (*FORGET, Example(FORGET[0].turns, "the singer"))
    assert run("neurons", Task(model, forget, RETAIN, tmp_path), {"share": 0.5}).manifest.method


def test_a_model_that_is_not_the_wanted_one_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"weights {'0' * 16}"):
        run("steering", Task(model, FORGET, RETAIN, tmp_path / "out", base_model="0" * 64), {})
    wanted = artifacts.weights_digest(model)
    made = run("steering", Task(model, FORGET, RETAIN, tmp_path / "out", base_model=wanted), {})
    assert made.manifest.base_model == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("trainer", "params"),
    [
        ("adapter", ADAPTER),
        ("adapter", {**ADAPTER, "loss": "npo"}),
        ("sae", SAE),
        ("corruption", CORRUPTION),
    ],
)
def test_a_run_that_was_killed_goes_on_and_makes_the_same_artifact(
    model: Path, tmp_path: Path, trainer: str, params: dict[str, Any]
) -> None:
    if trainer == "sae":
        lens_or_skip()
    checkpoint = Checkpoint(tmp_path / "work", every=5)
    task = Task(model, FORGET, RETAIN, tmp_path / "whole", checkpoint=checkpoint)
    if trainer == "corruption":  # which has to tell which characters the tokens stand for
        task = replace(task, model=DEMO, forget=FACTS, names=(PERSON,))
    whole = run(trainer, replace(task, checkpoint=Checkpoint()), params)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, replace(task, out=tmp_path / "cut", progress=Told(stop_at=0.7)), params)
    kept = (tmp_path / "work" / NAME).read_bytes()
    assert not any(one.answer.encode() in kept for one in task.forget), "text of the examples lies on disk"
    torch.manual_seed(99)  # what another process would have drawn must not matter
    told = Told()
    again = run(trainer, replace(task, out=tmp_path / "again", progress=told), params)
    assert told.trained and told.trained[0] >= 0.4, "it began anew"
    assert again.digest == whole.digest
    assert list((tmp_path / "work").iterdir()) == []


def test_what_was_kept_for_something_else_is_not_taken(model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "work", every=5)
    task = Task(model, FORGET, RETAIN, tmp_path / "out", checkpoint=checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run("adapter", replace(task, progress=Told(stop_at=0.7)), ADAPTER)
    kept = (tmp_path / "work" / NAME).read_bytes()
    for changed, params in (
        (replace(task, forget=FORGET[:1]), ADAPTER),
        (task, {**ADAPTER, "learning_rate": 0.001}),
    ):
        (tmp_path / "work" / NAME).write_bytes(kept)
        told = Told()
        run("adapter", replace(changed, progress=told), params)
        assert told.trained[0] == pytest.approx(0.1)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every=5, purpose="p")
    assert [step for step in range(12) if checkpoint.due(step)] == [5, 10]
    assert checkpoint.load() is None
    checkpoint.save({"step": 5, "x": torch.ones(3)})
    drawn = torch.rand(4)
    found = checkpoint.load()
    assert found is not None and found["step"] == 5
    assert torch.equal(torch.rand(4), drawn)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-40])
    assert checkpoint.load() is None
    assert not Checkpoint().due(5) and Checkpoint().load() is None


def started(model: Path, out: Path, *options: str, trainer: str = "steering") -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "classifiers",
        trainer,
        "--model",
        str(model),
        "--out",
        str(out),
        *options,
    ]
    return subprocess.Popen(
        [*command, "--stdin", "--progress", "json"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def line(forget: Any, retain: Any) -> bytes:
    rows = {
        name: [{"prompt": e.turns[0][1], "answer": e.answer} for e in examples]
        for name, examples in (("forget", forget), ("retain", retain))
    }
    return json.dumps(rows).encode() + b"\n"


def test_a_program_reads_events_and_gives_examples_without_a_file(model: Path, tmp_path: Path) -> None:
    process = started(model, tmp_path / "out")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line(FORGET, RETAIN))
    process.stdin.flush()
    events = [json.loads(text) for text in process.stdout]
    assert process.wait(60) == 0
    process.communicate()
    assert [e["event"] for e in events] == ["progress", "done"]
    assert events[-1]["artifact"] == artifacts.read(tmp_path / "out").digest
    assert events[-1]["measured"]["examples"] == {"forget": 2, "retain": 2, "unknown": 1}


def test_a_program_reads_why_nothing_was_trained(model: Path, tmp_path: Path) -> None:
    process = started(model, tmp_path / "out")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line(FORGET, FORGET))
    process.stdin.flush()
    (event,) = map(json.loads, process.stdout)
    assert process.wait(60) == 1
    process.communicate()
    assert event == {
        "event": "error",
        "message": "Retain example 1 asks what forget example 1 asks; take one of them out.",
    }


def test_a_trainer_ends_with_the_one_who_started_it(model: Path, tmp_path: Path) -> None:
    process = started(model, tmp_path / "out", "--set", "steps=100000", trainer="adapter")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line(FORGET, RETAIN))
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "progress"
    process.stdin.close()
    assert process.wait(10) == 1
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    assert not (tmp_path / "out").exists()


def test_a_killed_process_goes_on_with_resume_and_ends_with_the_same_digest(
    model: Path, tmp_path: Path
) -> None:
    whole = run("adapter", Task(model, FORGET, RETAIN, tmp_path / "whole"), {**ADAPTER, "steps": 60})
    options = ("--work", str(tmp_path / "work"), "--checkpoint-every", "10", "--set", "rank=2")
    options = (*options, "--set", "steps=60", "--set", "batch=2")
    process = started(model, tmp_path / "cut", *options, trainer="adapter")
    assert process.stdin is not None
    process.stdin.write(line(FORGET, RETAIN))
    process.stdin.flush()
    ends = time.monotonic() + 60
    while not (tmp_path / "work" / NAME).exists() and time.monotonic() < ends:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = started(model, tmp_path / "again", *options, "--resume", trainer="adapter")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line(FORGET, RETAIN))
    process.stdin.flush()
    events = [json.loads(text) for text in process.stdout]
    process.communicate()
    first = next(e for e in events if e.get("stage") == "training")
    assert first["done"] >= 0.23
    assert events[-1]["artifact"] == whole.digest
