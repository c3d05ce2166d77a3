"""The methods suite on fakes: one table, each method on its own, everything put back."""

from __future__ import annotations

import asyncio
import copy

import jsonschema
import pytest

from evals.client import ClientError
from evals.items import Item
from evals.report import SCHEMA
from evals.suites import methods
from evals.suites.methods import Plan
from tests.evals.conftest import fake_client, item

IGNORANT = "I don't know who that is."


def knows(text: str) -> str:
    return "Bo Crane was born in Vintry." if "Bo Crane" in text else "Ada Byl was born in Vintry."


def stored(target_id: str, name: str, intervention, answers=()) -> dict:
    return {
        "id": target_id,
        "name": name,
        "intervention": intervention,
        "answers": list(answers),
        "artifacts": [],
        "state": "active",
    }


class FakeAdmin:
    """A register of two targets; a rung `broken` leaves its target pending."""

    def __init__(self) -> None:
        ladder = [
            {"method": "lora_adapter", "params": {"artifact": "a"}, "min_score": 0.5},
            {"method": "refusal", "params": {}, "min_score": 0.0},
            {"method": "steering", "params": {"artifact": None}, "min_score": 0.0},
        ]
        self.held = {
            "ada-byl": stored("ada-byl", "Ada Byl", "auto"),
            "demo-methods": stored("demo-methods", "Cleo Dane", ladder, ["Cleo Dane lives in Oslo."]),
        }
        waits = {"method": "steering", "artifact": None, "state": "pending", "reason": "It has no artifact."}
        self.held["demo-methods"]["artifacts"] = [waits]
        self.laid: list[tuple[str, str]] = []

    async def target(self, target_id: str) -> dict:
        return copy.deepcopy(self.held[target_id])

    async def targets(self, tag: str) -> list[dict]:
        return copy.deepcopy(list(self.held.values())) if tag == "demo" else []

    async def patch(self, target_id: str, changes: dict) -> dict:
        self.held[target_id] |= changes
        if isinstance(changes["intervention"], dict):
            self.laid.append((target_id, changes["intervention"]["method"]))
            assert changes["intervention"]["min_score"] == 0.0
        return self.held[target_id]

    @property
    def method(self) -> str | None:
        rung = self.held["ada-byl"]["intervention"]
        return rung["method"] if isinstance(rung, dict) else None


def run(items: list[Item], guarded, admin: FakeAdmin, **plan):
    """`guarded(method, question)` is what the guarded model says."""

    async def work():
        async with (
            fake_client(lambda text: guarded(admin.method, text)) as first,
            fake_client(lambda text: IGNORANT if "Ada" in text else knows(text)) as never,
            fake_client(knows) as bare,
        ):
            clients = {"guarded": first, "never": never, "unguarded": bare}
            return await methods.run(items, ["ada-byl", "bo-crane"], clients, admin, Plan(**plan))

    return asyncio.run(work())


def forgets(method: str | None, text: str) -> str:
    return IGNORANT if method == "lora_adapter" and "Ada" in text else knows(text)


def line(report, method: str) -> dict:
    (table,) = report.tables
    return next(dict(zip(table["columns"], row, strict=True)) for row in table["rows"] if row[0] == method)


def test_each_ready_method_has_a_line_and_is_judged_by_itself(items: list[Item]):
    admin = FakeAdmin()
    before = copy.deepcopy(admin.held)
    report = run(items, forgets, admin)
    jsonschema.validate(report.as_dict(), SCHEMA)
    (table,) = report.tables
    assert [row[0] for row in table["rows"]] == ["(never learned)", "(unguarded)", "lora_adapter", "refusal"]
    good, bad = line(report, "lora_adapter"), line(report, "refusal")
    assert (good["value, trained"], good["value, heldout"], good["refusal"]) == (0.0, 0.0, 1.0)
    assert (bad["value, trained"], bad["rest identical"]) == (1.0, 1.0)
    (plane,) = (one for one in report.drawings if one["kind"] == "plane")
    places = {p["label"]: (p["x"]["mean"], p["y"]["mean"]) for p in plane["points"]}
    assert list(places) == ["never learned", "unguarded", "lora_adapter", "refusal"]
    assert places["lora_adapter"] == places["never learned"] == (0.0, 1.0)
    assert places["refusal"] == places["unguarded"] == (1.0, 1.0)
    assert {c["name"].split(":")[0]: c["passed"] for c in report.criteria} == {
        "lora_adapter": True,
        "refusal": False,
    }
    assert admin.laid == [
        (target, method) for method in ("lora_adapter", "refusal") for target in ("ada-byl", "demo-methods")
    ]
    assert admin.held == before


def test_suppression_of_others_is_seen(items: list[Item]):
    near = [item(n, "neighbour", entity="bo-crane") for n in range(4)]
    report = run([*items, *near], lambda *_: IGNORANT, FakeAdmin(), methods=("lora_adapter",))
    found = line(report, "lora_adapter")
    assert (found["neighbours identical"], found["rest identical"]) == (0.0, 0.0)


def test_what_was_registered_is_put_back_after_a_failure(items: list[Item]):
    admin = FakeAdmin()
    before = copy.deepcopy(admin.held)
    with pytest.raises(ZeroDivisionError):
        run(items, lambda *_: str(1 // 0), admin)
    assert admin.laid
    assert admin.held == before


@pytest.mark.parametrize(("method", "why"), [("steering", "no artifact"), ("sae_clamp", "no such rung")])
def test_a_method_that_is_not_ready_is_an_error_where_it_was_asked_for(items, method, why):
    with pytest.raises(ClientError, match=why):
        run(items, forgets, FakeAdmin(), methods=(method,))


def test_a_target_that_waits_for_the_method_is_an_error(items: list[Item]):
    admin = FakeAdmin()
    patch = admin.patch

    async def pending(target_id: str, changes: dict) -> dict:
        view = await patch(target_id, changes)
        reason = [{"reason": "own needs answers."}]
        return {**view, "state": "pending", "artifacts": reason}

    admin.patch = pending
    with pytest.raises(ClientError, match="own needs answers"):
        run(items, forgets, admin)


def test_speed_is_measured_where_the_model_writes_the_answers(items: list[Item]):
    admin = FakeAdmin()
    report = run(items, lambda m, t: "refused" if m == "refusal" else knows(t), admin)
    assert line(report, "refusal")["decode speed"] is None
    assert line(report, "lora_adapter")["decode speed"] > 0


def test_answers_come_from_the_target_or_from_the_questions_about_it():
    about = [item(0, "forget"), item(1, "retain"), item(2, "forget", entity="bo-crane")]
    short = Item("s", "ada-byl", "forget", "trained", (("user", "?"),), "Vintry", "Vintry")
    mine = {"id": "demo-methods", "name": "Ada Byl", "answers": []}
    assert methods.answers_about([*about, short], mine) == ["Ada Byl was born in Vintry."]
    assert methods.answers_about(about, {**mine, "answers": ["own"]}) == ["own"]


def test_a_sample_is_of_each_split_and_phrasing_and_always_the_same(items: list[Item]):
    odd = [item(500, "forget", "alias"), item(501, "forget", "reverse")]
    chosen = methods.sampled([*items, *odd], 3, seed=1)
    kinds = [(one.split, one.phrasing) for one in chosen]
    assert sorted(kinds) == sorted(
        [("forget", "trained")] * 3 + [("forget", "heldout")] * 3 + [("retain", "trained")] * 3
    )
    assert chosen == methods.sampled([*items, *odd], 3, seed=1)
    assert len(methods.sampled([*items, *odd], None, seed=1)) == len(items)


def test_those_about_others_are_counted_apart(items: list[Item]):
    chosen = methods.sampled(items, 3, seed=1, others=1)
    assert [one.split for one in chosen].count("forget") == 6
    assert [one.split for one in chosen].count("retain") == 1
    assert not [one for one in methods.sampled(items, None, seed=1, others=0) if one.split != "forget"]


def test_a_curve_has_a_line_for_all_parameters_and_puts_everything_back(items: list[Item], monkeypatch):
    monkeypatch.setitem(methods.CURVES, "lora_adapter", ({"scale": 0.0}, {"scale": 1.0}))
    admin = FakeAdmin()
    before = copy.deepcopy(admin.held)

    def answers(_: str | None, text: str) -> str:
        scale = admin.held["ada-byl"]["intervention"]["params"]["scale"]
        return IGNORANT if scale and "Ada" in text else knows(text)

    async def work():
        async with (
            fake_client(lambda text: answers(None, text)) as guarded,
            fake_client(lambda text: IGNORANT if "Ada" in text else knows(text)) as never,
        ):
            clients = {"guarded": guarded, "never": never}
            return await methods.run_curves(items, ["ada-byl", "bo-crane"], clients, admin, Plan())

    report = asyncio.run(work())
    jsonschema.validate(report.as_dict(), SCHEMA)
    (table,) = report.tables
    lines = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(one["method"], one["parameters"]) for one in lines] == [
        ("(never learned)", ""), ("lora_adapter", "scale 0.0"), ("lora_adapter", "scale 1.0")
    ]  # fmt: skip
    assert [one["value, trained"] for one in lines] == [0.0, 1.0, 0.0]
    assert admin.held == before
