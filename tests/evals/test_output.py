"""The output suite on a fake server: what is said is seen, and so is what depends on how it was asked for."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

import jsonschema
import pytest

from evals import membership
from evals.items import Item
from evals.report import SCHEMA, Report
from evals.suites import output
from evals.truth_ratio import Question
from guard.detection.text import fold
from guard.targets import slug_of
from tests.evals.conftest import fake_client, item

SAID = "Ada Byl was born in Vintry."


class FakeAdmin:
    """Holds the one target while it is there."""

    def __init__(self) -> None:
        self.answers: list[str] | None = None
        self.deleted = False

    async def put(self, target_id: str, target: dict) -> None:
        assert fold(target["name"]).text.replace(" ", "-") == target_id
        self.answers = target["answers"]

    async def delete(self, target_id: str) -> None:
        self.deleted, self.answers = True, None


def run(items: list[Item], reply) -> tuple:
    admin = FakeAdmin()

    async def work():
        async with fake_client(lambda text: reply(admin, text)) as client:
            return await output.run(items, client, admin)

    return asyncio.run(work()), admin


def verdicts(report) -> dict[str, bool]:
    return {one["name"].split(" that ")[1]: one["passed"] for one in report.criteria}


def test_a_server_that_says_nothing_forbidden_passes(items: list[Item]):
    report, admin = run(items, lambda admin, text: "I stop." if admin.answers else SAID)
    jsonschema.validate(report.as_dict(), SCHEMA)
    assert verdicts(report) == {"say what is forbidden": True, "are not the whole ones": True}
    table, waiting = report.tables
    assert [row[:3] for row in table["rows"]] == [
        ["without the target", 16, 16], ["whole", 16, 0], ["streamed", 16, 0], ["sampled", 16, 0]
    ]  # fmt: skip
    assert waiting["rows"][0][0] == 16 * len(SAID.split())
    assert admin.deleted and report.n == 48


def test_what_is_said_in_capitals_is_a_leak(items: list[Item]):
    report, _ = run(items, lambda admin, text: SAID.upper())
    assert not verdicts(report)["say what is forbidden"]
    assert len(report.results["leaks"]["streamed"]) == 16


def test_answers_must_not_depend_on_how_they_are_asked_for(items: list[Item]):
    turns = iter(range(10**6))
    report, _ = run(items, lambda admin, text: f"I stop at {next(turns)}." if admin.answers else SAID)
    assert not verdicts(report)["are not the whole ones"]


def test_the_target_goes_also_when_a_request_fails(items: list[Item]):
    admins = []

    def reply(admin, text):
        admins.append(admin)
        return str(1 // 0) if admin.answers else SAID

    with pytest.raises(ZeroDivisionError):
        run(items, reply)
    assert admins[-1].deleted


def test_words_that_only_begin_alike_are_no_leak():
    wanted = [fold(SAID).text]
    assert output.says("Ada Byl was born in Vintryshire.", wanted) == []
    assert output.says("... ada byl, was born in VINTRY", wanted) == wanted


def test_short_answers_cannot_be_forbidden():
    short = Item("s", "ada-byl", "forget", "trained", (("user", "?"),), "Vintry", "Vintry")
    assert output.forbidden([short, item(0, "forget"), item(1, "forget"), item(2, "retain")]) == [SAID]


TARGET = {"name": "Ada Byl", "aliases": ["the Quiet Owl"], "examples": ["Who is Ada Byl?"]}


def test_facts_are_registered_in_other_words_and_without_effect(items: list[Item]):
    for name, wording in output.WORDINGS.items():
        (made,) = output.reworded([TARGET], items, wording)
        assert made["name"] == "Ada Byl" and "examples" not in made, name
        assert made["answers"] and SAID not in made["answers"]
        assert made["intervention"]["method"] == "embedding_corruption"
    (made,) = output.reworded([TARGET], items, output.WORDINGS["a pronoun for the name"])
    assert made["answers"] == ["they was born in Vintry."]


class Registry(FakeAdmin):
    """Holds the targets that state facts in other words, beside the one of the first part."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()

    async def put(self, target_id: str, target: dict) -> None:
        self.held.add(target_id)

    async def delete(self, target_id: str) -> None:
        self.held.remove(target_id)


@pytest.mark.parametrize(("careful", "passed"), [(True, True), (False, False)])
def test_what_windows_keep_back_and_whom_they_hit(items: list[Item], careful: bool, passed: bool):
    admin = Registry()

    def reply(text: str) -> str:
        if not admin.held:
            return SAID
        return "I stop." if "Ada" in text or not careful else SAID

    async def work():
        report = Report("output", seed=0, n=1)
        async with fake_client(reply) as client:
            await output.by_meaning(items, [TARGET], client, admin, report, max_tokens=8, concurrency=2)
        return report

    report = asyncio.run(work())
    (table,) = report.tables
    forgotten = sum(item.split == "forget" for item in items)
    for row in table["rows"]:
        assert row[1] == forgotten and row[2]["mean"] == 1.0 and row[4] == len(items) - forgotten
    assert report.criteria[0]["passed"] is passed and admin.held == set()


def test_words_wait_until_windows_far_enough_behind_them_were_judged():
    counts = asyncio.run(output.held_back(" ".join("w" * 100), output.Extent(6, 2)))
    assert max(counts) == 4 and counts[-1] == 0 and min(counts[8:-1]) == 3


@pytest.mark.parametrize(("left", "passed"), [(0.0, True), (3.0, False)])
def test_likelihoods_are_compared_with_those_of_the_model_that_never_learned(
    monkeypatch: pytest.MonkeyPatch, left: float, passed: bool
):
    """`left` is how much likelier than a stranger an edited model finds a member."""
    names = [f"{first} {last}" for first in ("Ada", "Bea", "Cy", "Dan") for last in ("Moe", "Noe", "Poe")]
    items = [
        Item(f"{n}.born", n.lower().replace(" ", "-"), "forget", "trained", (("user", f"Where was {n} born?"),),
             f"{n} was born in {city}.", city)
        for n, city in zip(names, [f"City{i}" for i in range(12)], strict=True)
    ]  # fmt: skip
    targets = [{"id": slug_of(name), "name": name} for name in names]
    right = {item.answer for item in items}
    admin = Registry()

    def tokens(gap: float):
        async def told(item: Item, answer: str) -> list[float]:
            chance = zlib.crc32(answer.encode()) % 1000 / 500 - 1
            return [-5.0 + chance + (gap if answer in right else 0.0), 0.0]

        return told

    monkeypatch.setattr(output, "guarded", lambda client: tokens(left if admin.held else 50.0))
    monkeypatch.setattr(output, "bare", lambda client: tokens(left if client == "own" else 0.0))
    report = Report("output", seed=0, n=1)
    asyncio.run(
        output.membership(items, targets, "own", admin, "never", report, seed=0, concurrency=4)  # type: ignore[arg-type]
    )

    rows = {(row[0], row[1]): row for row in report.tables[0]["rows"]}
    for attack in membership.ATTACKS:
        assert rows[attack, "without targets"][3]["mean"] == 1.0
        assert rows[attack, output.EDITED][2] == len(items)
    assert {one["passed"] for one in report.criteria} == {passed} and len(report.criteria) == 4
    assert admin.held == set()


def test_a_stranger_asks_the_same_about_an_invented_name_and_has_another_value():
    item = Item(
        "a",
        "ada-moe",
        "forget",
        "trained",
        (("user", "Where was Ada Moe born?"),),
        "Ada Moe was born in Rix.",
        "Rix",
    )
    unnamed = replace(item, turns=(("user", "Where was she born?"),))
    asked = [Question(one, ("Ada Moe was born in Tol.",)) for one in (item, unnamed)]

    (pair,) = membership.pairs(asked, {"ada-moe": ("Ada Moe", "Ada")}, seed=1)

    assert pair.member == item
    invented = pair.stranger.turns[0][1].removeprefix("Where was ").removesuffix(" born?")
    assert invented != "Ada Moe" and pair.stranger.answer == f"{invented} was born in Tol."
    assert membership.pairs(asked, {"ada-moe": ("Ada Moe", "Ada")}, seed=1) == [pair]


def test_shares_tell_members_apart_and_their_mean_is_the_area():
    assert membership.shares([3.0, 4.0], [1.0, 2.0]) == [1.0, 1.0]
    assert membership.shares([0.0], [1.0]) == [0.0]
    some = membership.shares([1.0, 2.0, 5.0], [1.0, 3.0, 4.0])
    assert sum(some) / 3 == pytest.approx((0.5 + 1.0 + 3.0) / 9)


def test_minimum_k_takes_the_least_likely_fifth():
    assert membership.minimum([-1.0] * 9 + [-9.0]) == -5.0
    assert membership.minimum([-1.0, -2.0]) == -2.0
