"""The search keeps to its budget, goes on where it was, and survives candidates that fail; what is judged by was not
trained on; and what is written holds none of the examples' text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from classifiers.auto import material
from classifiers.auto import report as reports
from classifiers.auto import search as searches
from classifiers.auto.__main__ import AutoParams, main
from classifiers.auto.candidates import CANDIDATES, Candidate, Pace
from classifiers.auto.choice import Ground, Said, Trial, Wanted, choose
from classifiers.auto.material import Amounts, Material
from classifiers.auto.search import Outcome, Search
from classifiers.base import Task
from classifiers.base import load as load_trainer
from classifiers.data import Example
from classifiers.edited import Reader, Treatment
from guard import artifacts, interventions
from guard.artifacts import Artifact
from guard.detection.encoder import hashing_encoder
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, example, save_model

MODELS = Path(__file__).parents[2] / "demo" / "models"
PACE = Pace(0.001, 0.003, 0.1, 4, 16, 10_000, 5, 100, 10.0, asked=10, draws=2)
SECRET = "ZEBRAFISH"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Judge:
    """Remembers what it was asked to try."""

    pace = PACE

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def tried(self, candidate: Candidate, artifact: Artifact | None, seconds: float) -> Trial:
        named = {} if artifact is None else {"artifact": artifact.digest}
        self.asked.append((candidate.name, named.get("artifact")))
        said = Said([0.1, 0.2], [0.1, 0.1], [0.0, 0.0], [1.0, 1.0])
        folder = None if artifact is None else artifact.folder.name
        return Trial(candidate.name, candidate.method, named, said, said, 1.5, seconds, 7, folder)


def candidate(name: str, trainer: str | None = "made", cost: float = 0.0, **settings: Any) -> Candidate:
    return Candidate(name, f"{name}-method", {}, trainer, lambda _: {"of": name, **settings}, lambda _: cost)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def searching(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Search, Judge, list[str]]]:
    """Makes a search in the same folder, with trainers that do what their settings say and note that they ran."""
    save_model(tmp_path / "model")
    digest = artifacts.weights_digest(tmp_path / "model")

    def train(trainer: str, task: Task, settings: dict[str, Any]) -> Artifact:
        trained.append(trainer)
        task.progress.report(0.0, "training")
        clock.now += settings.get("takes", 0.0)
        task.progress.report(0.5, "training")
        if (error := settings.get("error")) is not None:
            raise {"ours": BadRequest("There are too few examples."), "theirs": RuntimeError(SECRET)}[error]
        return artifacts.write(task.out, "steering", digest, measured={"settings": settings})

    def make(purpose: str = "p", forget: Sequence[Example] = FORGET) -> tuple[Search, Judge, list[str]]:
        judge = Judge()
        task = Task(tmp_path / "model", tuple(forget), KNOWN, tmp_path / "out", names=("jane",))
        return Search(task, judge, purpose, tell=told.append, clock=clock), judge, trained

    trained: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(searches, "run", train)
    return make


def states(outcomes: Iterable[Outcome]) -> list[str]:
    return ["tried" if o.trial else "skipped" if o.skipped else "failed" for o in outcomes]


def test_what_does_not_fit_into_the_budget_is_left_out_and_named(searching: Any) -> None:
    search, judge, _ = searching()
    measuring = PACE.measuring(False)
    outcomes = search.run([candidate("a", cost=5), candidate("b", cost=500), candidate("c", cost=1)], 20.0)
    assert states(outcomes) == ["tried", "skipped", "tried"]
    assert outcomes[1].skipped == f"It needs about {500 + measuring:.0f} s, and 20 s of the budget are left."
    assert [name for name, _ in judge.asked] == ["a", "c"]
    assert states(search.run([candidate("d", cost=1)], 0.5)) == ["skipped"]


def test_a_trainer_that_takes_longer_than_estimated_is_ended_with_the_budget(
    searching: Any, clock: Clock
) -> None:
    search, judge, trained = searching()
    outcomes = search.run([candidate("slow", takes=60.0), candidate("quick", "other")], 30.0)
    assert states(outcomes) == ["skipped", "skipped"] and trained == ["made"]
    assert "took longer" in outcomes[0].skipped and "0 s of the budget are left" in outcomes[1].skipped
    assert not judge.asked


def test_a_candidate_that_fails_does_not_end_the_search(searching: Any) -> None:
    search, *_ = searching()
    outcomes = search.run(
        [candidate("bad", error="ours"), candidate("broken", error="theirs"), candidate("c")], 60
    )
    assert states(outcomes) == ["failed", "failed", "tried"]
    assert outcomes[0].failed == "There are too few examples."
    assert outcomes[1].failed == "It broke with RuntimeError.", "its words may hold text of the examples"


def test_what_was_tried_is_not_tried_again(searching: Any, tmp_path: Path) -> None:
    wanted = [candidate("a"), candidate("b", None), candidate("c", steps=3)]
    search, judge, trained = searching()
    first = search.run(wanted, 60)
    assert len(judge.asked) == 3 and len(trained) == 2
    search, judge, _ = searching()
    again = search.run(wanted, 0.0)
    assert [o.trial for o in again] == [o.trial for o in first] and not judge.asked and len(trained) == 2
    search, judge, _ = searching(purpose="other noise")
    search.run(wanted, 60)
    assert len(judge.asked) == 3 and len(trained) == 4
    search, judge, _ = searching(forget=FORGET[:1])
    search.run(wanted, 60)
    assert len(judge.asked) == 3
    for path in (tmp_path / "out" / "artifacts").rglob("manifest.json"):
        path.unlink()
    search, judge, _ = searching()
    search.run(wanted, 60)
    assert [name for name, _ in judge.asked] == ["a", "c"], "what lacks its artifact is made again"
    for path in (tmp_path / "out" / "artifacts").rglob("manifest.json"):
        artifacts.write(path.parent, "steering", "0" * 64, measured={"made": "by somebody else"})
    search, judge, _ = searching()
    search.run(wanted, 60)
    assert [name for name, _ in judge.asked] == ["a", "c"], "what was tried was another artifact"


def test_candidates_that_differ_in_their_rung_share_an_artifact(searching: Any) -> None:
    search, judge, trained = searching()
    one, other = candidate("weak", cost=5, of=""), candidate("strong", cost=5, of="")
    assert search.estimate(other) == pytest.approx(5 + PACE.measuring(False))
    search.run([one], 60)
    assert search.estimate(other) == pytest.approx(PACE.measuring(False))
    search.run([other], 60)
    assert len(trained) == 1 and len({digest for _, digest in judge.asked}) == 1


def test_the_table_names_methods_trainers_and_settings_that_exist() -> None:
    assert len({one.name for one in CANDIDATES}) == len(CANDIDATES)
    for one in CANDIDATES:
        interventions.check_params(one.method, one.params)
        assert one.seconds(PACE) >= 0.0
        assert one.noisy == (one.method in ("embedding_corruption", "neuron_adjust"))
        if one.trainer is not None:
            load_trainer(one.trainer).params_type.model_validate(one.settings(PACE))
    untrained = [one.trainer is None for one in CANDIDATES]
    assert untrained == sorted(untrained, reverse=True), "what costs nothing comes first"


class Parrot:
    """Says the same to whatever asks the same: the last word of a question."""

    def answers(self, rows: Sequence[Example], treatment: None) -> list[str]:
        return [f"it says {row.turns[-1][1].split()[-1]}" for row in rows]


class Plain:
    def row(self, one: Example) -> Example:
        return one

    def about_somebody(self, one: Example, rng: Any) -> Example:
        return replace(one, turns=(("user", f"{one.turns[-1][1]} i do not know"),), answer="invented")


def gather(
    forget: Sequence[Example], retain: Sequence[Example] = (), holdout: Sequence[Example] = (), **amounts: Any
) -> Material:
    given = Amounts(**{"judged": 60, "near": 40, "everyday": 0, "share": 0.3, "seed": 0, **amounts})
    found: Material = material.gather(
        forget, retain, holdout, Parrot(), Plain(), hashing_encoder(), given, invent=True  # type: ignore[arg-type]
    )  # fmt: skip
    return found


def test_no_wording_is_both_trained_on_and_judged_by() -> None:
    forget = [example(f"wording {i} of fact {fact}", f"fact {fact}") for fact in range(5) for i in range(4)]
    made = gather(forget)
    assert not set(made.forget) & set(made.judged) and len(made.forget) + len(made.judged) == 20
    assert {e.origin for e in made.judged} == {e.origin for e in made.forget}, "of each fact one is held out"
    assert made.notes[0] == material.WORDINGS


def test_with_one_wording_of_each_fact_other_facts_are_judged() -> None:
    made = gather([example(f"fact {fact}", f"the fact {fact}") for fact in range(9)])
    assert len(made.judged) == 3 and not {e.origin for e in made.judged} & {e.origin for e in made.forget}
    assert made.notes[0] == material.FACTS
    assert gather([example("only one", "one fact")]).notes[0] == material.ALONE


def test_what_is_given_to_judge_by_is_judged() -> None:
    held = example("who may that be", "jane")
    made = gather(FORGET, holdout=[held])
    assert made.judged == (held,) and set(made.forget) == set(FORGET) and made.notes[0] == material.GIVEN


def test_examples_without_answers_get_the_models_own() -> None:
    made = gather([example("who is jane"), example("where is jane"), example("what is doe")])
    assert {e.answer for e in (*made.forget, *made.judged)} == {"it says jane", "it says doe"}


def test_neighbours_are_the_nearest_and_the_others_of_their_kind_stay_for_training() -> None:
    near = [example(f"where does jane {word} plays", f"near {word}") for word in ("a", "b", "c", "d")]
    far = [example(f"how hot is boiling water {i}", f"far {i}") for i in range(20)]
    made = gather([example("where does jane work plays", "x")], [*far, *near], near=2)
    assert len(made.near) == 2 and set(made.near) < set(near)
    assert not {e.origin for e in made.near} & {e.origin for e in made.retain}
    assert set(near) & set(made.retain)
    assert material.NO_NEIGHBOURS in gather(FORGET).notes


def test_missing_refusals_and_everyday_questions_are_asked_of_the_model() -> None:
    class Ignorant(Parrot):
        def answers(self, rows: Sequence[Example], treatment: None) -> list[str]:
            return ["I do not know that." if "do not know" in r.turns[-1][1] else "yes" for r in rows]

    amounts = Amounts(60, 40, 10, 0.3, 0)
    args = (Ignorant(), Plain(), hashing_encoder(), amounts)
    made = material.gather(FORGET, KNOWN, (), *args, invent=True)  # type: ignore[arg-type]
    assert material.INVENTED in made.notes and "I do not know that." in {e.answer for e in made.retain}
    assert material.EVERYDAY in made.notes and len(made.retain) > len(KNOWN)
    known = [*KNOWN, example("who is roe", "I do not know that.")]
    made = material.gather(FORGET, known, (), *args, invent=True)  # type: ignore[arg-type]
    assert material.INVENTED not in made.notes


def test_a_method_of_the_prompt_puts_its_text_in_front_of_the_question() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "full")
    reader = Reader(tokenizer, ("Limir Yarley",))
    row = reader.row(example("Where was Limir Yarley born?", "nowhere"))
    facts = {"questions": ("Who is Limir Yarley?",)}
    told = "You know nothing about Limir Yarley."
    for method, text in (("guard_prompt", told), ("in_context", "Who is Limir Yarley? I don't know.")):
        put = reader.under(row, Treatment(method, {}, facts=facts))
        read = tokenizer.decode(put.prompt.token_ids)
        before, _, behind = read.partition(text)
        assert "Where was" not in before and "Where was Limir Yarley born?" in behind
        assert before.strip() and put.answer_ids == row.answer_ids


def test_a_page_shows_all_candidates_and_stands_alone() -> None:
    said = Said([0.1, 0.2], [0.1, 0.1], [0.0, 0.0], [1.0, 1.0])
    ground = Ground(["a", "b"], Said([1, 1], [1, 1], [0, 0], [0, 0]), said, ["c", "d"], said)
    trial = Trial("one <b>", "steering", {"artifact": "0" * 64}, said, said, 1.5, 2.0, 700, "f")
    outcomes = [
        Outcome("one <b>", "steering", 1.0, trial),
        Outcome("two", "sae_clamp", 9.0, skipped="It needs about 9 s & more."),
        Outcome("three", "lora_adapter", 9.0, failed="There are too few examples."),
    ]
    choice = choose([trial], ground, Wanted())
    about = {"notes": ["A note."], "budget_s": 60.0, "judged_by": 2}
    found = reports.report(outcomes, ground, choice, Wanted(), about)
    page = reports.html(found, outcomes, ground, choice)
    for part in ("one &lt;b&gt;", "9 s &amp; more", "too few", "<svg", "A note.", "rung 1", "refusal"):
        assert part in page
    for part in ("<b>", "http", "<script", "src="):
        assert part not in page
    assert json.loads(json.dumps(found))["chosen"] == ["one <b>"]
    terminal = reports.text(reports.table(outcomes, ground, choice))
    assert "not tried" in terminal and "failed" in terminal
    assert "what is it" in reports.html(found, outcomes, ground, choice, [("what is it", "x", "y")])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"only": ["nonsense"]}, "There is no candidate 'nonsense'"),
        ({"only": ["steering"], "without": ["steering"]}, "No candidate is left"),
    ],
)
def test_candidates_are_named_by_name_or_method(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        AutoParams(**settings).candidates()
    both = [one.name for one in AutoParams(only=("lora_adapter", "corruption")).candidates()]
    assert both == ["corruption", "redirection", "refusing adapter", "npo adapter"]
    assert all(one.method != "lora_adapter" for one in AutoParams(without=("lora_adapter",)).candidates())


def rows(split: str, entity: str | None, most: int) -> list[dict[str, Any]]:
    lines = (MODELS.parent / "items.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row for row in map(json.loads, lines) if row["split"] == split and row["phrasing"] == "trained"]
    return [row for row in found if entity in (None, row["entity"]) and len(row["turns"]) == 1][:most]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example files of a person of the demo, and the target."""
    folder = tmp_path_factory.mktemp("given")
    sets = {"forget": rows("forget", "limir-yarley", 18), "retain": rows("neighbour", None, 24)}
    for name, found in sets.items():
        lines = (json.dumps({"turns": row["turns"], "answer": row["answer"]}) for row in found)
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "target.json").write_text('{"name": "Limir Yarley"}', encoding="utf-8")
    return folder


def auto(given: Path, out: Path, *more: str) -> Any:
    files = [f"--{name}={given / f'{name}.jsonl'}" for name in ("forget", "retain")]
    about = [f"--model={MODELS / 'full'}", f"--target={given / 'target.json'}", "--encoder", "hashing"]
    return CliRunner().invoke(main, [*about, *files, f"--out={out}", *more])


QUICK = ("--set", "draws=1", "--set", "everyday=0", "--set", "only=[corruption, token_penalty, all neurons]")


def test_the_command_writes_a_ladder_artifacts_and_a_page_without_the_targets_text(
    given: Path, tmp_path: Path
) -> None:
    result = auto(given, tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    by_name = {one["name"]: one for one in found["candidates"]}
    assert by_name["token penalty"]["failed"] == "token_penalty needs answers that tell something."
    assert by_name["corruption"]["figures"]["gap"]["mean"] <= 0.05 and found["met"]
    assert found["untouched"]["recall"]["mean"] > 0.9 > found["never_learned"]["recall"]["mean"]
    assert by_name["corruption"]["unchanged"] and by_name["all neurons"]["unchanged"]
    ladder = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert ladder["intervention"][-1] == {"method": "refusal", "params": {}}
    for digest, folder in ladder["folders"].items():
        assert artifacts.read(tmp_path / "out" / folder).digest == digest
    written = [
        path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".html")
    ]
    for text in [*written, result.output]:
        assert "Yarley" not in text and "Vintry" not in text
    again = auto(given, tmp_path / "out", *QUICK, "--show-text")
    assert again.output.count("tried before") == 2
    assert "Yarley" in (tmp_path / "out" / "report.html").read_text()


def test_a_dry_run_tells_what_would_be_tried_and_leaves_nothing(given: Path, tmp_path: Path) -> None:
    result = auto(given, tmp_path / "out", *QUICK, "--dry-run")
    assert result.exit_code == 0 and "all neurons: neuron_adjust, about " in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--set", "tolerance"], 2, "key=value"),
        (["--set", "tolerance=2"], 1, "tolerance: Input should be less than"),
        (["--set", "taste=2"], 1, "taste: Extra inputs"),
        (["--name", "Jane"], 2, "Give either --target or --name"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    given: Path, tmp_path: Path, more: list[str], code: int, said: str
) -> None:
    result = auto(given, tmp_path / "out", *more)
    assert result.exit_code == code and said in result.output
