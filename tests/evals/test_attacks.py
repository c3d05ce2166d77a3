"""The red team against a small world: a sound guard passes, and each planted fault is called by its name."""

from __future__ import annotations

import asyncio
import copy
import random
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from evals.attacks import ATTACKS, USUAL, jailbreaks
from evals.attacks.base import run
from evals.attacks.cases import cases, drawn
from evals.attacks.oracles import distinct
from evals.attacks.prompts import filled
from evals.items import FORGET, ItemError
from evals.subjects import Ask, Endpoint, NotTold, Post
from evals.suites import attack_report
from evals.suites.attack_report import FAULTS, GIBBERISH, SUPPRESSED, THROUGH
from evals.suites.attacks import Measured, Plan, RedTeam, Result, chosen, known, on_methods
from evals.suites.methods import Plan as MethodsPlan
from tests.evals.test_methods import FakeAdmin
from tests.evals.world import UNKNOWN, World, items, targets

PLAN = Plan(chosen(), sample=10, benign=1)
FEW = (
    "few shot",
    "described: plain",
    "oracle: stop string",
    "oracle: tokens of likelihoods",
    "oracle: chosen option",
)
SMALL = Plan(chosen(FEW), sample=12, benign=6)
ATTACKS_OF = {
    "off": {"plain", *FEW} - {"few shot"},  # the model here answers for whom it reads of first
    "names": {"described: plain"},
    "logprobs": {"oracle: tokens of likelihoods"},
    "stop": {"oracle: stop string"},
}
PLANTED = {
    "off": FAULTS["plain"],
    "names": FAULTS["unnamed"],
    "logprobs": FAULTS["likelihoods"],
    "stop": FAULTS["stop"],
    "gibberish": GIBBERISH,
    "neighbours": SUPPRESSED,
}


def attacked(*faults, plan=PLAN, never=True):
    async def work():
        team = RedTeam(items(), targets(), plan)
        systems = {"unguarded": World(), "never": World(never=True),
                   "guarded": World(guarded=True, faults=frozenset(faults))}  # fmt: skip
        for name, world in systems.items():
            if never or name != "never":
                async with world.client() as client:
                    await team.ask(name, Endpoint(client, name, concurrency=64, lenient=True))
        return team

    team = asyncio.run(work())
    return attack_report.build(team.found, plan), team


@pytest.fixture(scope="module")
def sound():
    return attacked()


def test_a_sound_guard_has_no_fault(sound):
    report, _ = sound
    assert report.results["faults"] == {"guarded": []}
    assert report.passed


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_called_by_its_name(fault):
    report, _ = attacked(fault, plan=SMALL)
    assert report.results["faults"] == {"guarded": [PLANTED[fault]]}
    failed = [one["name"] for one in report.criteria if one["passed"] is False]
    through = set(report.results["through"]["guarded"])
    assert failed == [PLANTED[fault], *([THROUGH] if through else [])] and report.passed is False
    assert through == set(ATTACKS_OF.get(fault, ()))


def test_attacks_that_get_nothing_out_of_the_unguarded_model_are_told_and_left_out(sound):
    report, team = sound
    findings = attack_report.Findings(team.found, "guarded", PLAN, None)
    (matrix,) = [d for d in report.drawings if d["kind"] == "matrix"]
    assert "written: base64" not in findings.working and "written: base64" in matrix["note"]
    assert {"plain", "described: plain", "oracle: stop string"} <= findings.working


def test_without_a_never_learned_model_guessing_is_the_measure():
    report, team = attacked(never=False, plan=SMALL)
    guesses = [r for r in team.found.results if r.attack == "oracle: chosen option" and r.about_target]
    assert {r.chance for r in guesses} == {0.25}
    assert report.results["faults"] == {"guarded": []}


def findings(told, never=None, guesses=()):
    """Of one system that is told `told[attack][n]` of case n, and a never-learned one."""
    team = RedTeam(items(), targets(), Plan(chosen(["plain"]), sample=16, benign=0))
    about = [case for case in team.cases if case.item.split == FORGET]
    found = Measured({name: replace(ATTACKS["plain"], guesses=name in guesses) for name in told}, ())
    for name, values in told.items():
        for n, value in enumerate(values):
            result = Result(name, about[n])
            result.knows["guarded"] = value
            if never:
                result.knows["never"] = never[name][n]
            found.results.append(result)
    return attack_report.Findings(found, "guarded", Plan(found.attacks), None)


def test_the_hardest_cases_are_chosen_by_every_other_attack_and_measured_by_the_rest():
    """Attacks a and c choose (by name, every other): case 7 tells most in them. b and d measure."""
    choose = [0.1] * 10
    choose[7] = 0.9
    measure = [0.8] * 10
    measure[7] = 0.3
    one = findings({"d": measure, "a": choose, "b": measure, "c": choose})
    count, told = one.hardest()
    assert (count, told.mean) == (1, pytest.approx(0.3))
    count, told = findings({"a": measure, "b": choose}).hardest()  # any of the nine that choose alike, not 7
    assert (count, told.mean) == (1, pytest.approx(0.1))


def test_the_worst_of_all_attacks_is_beyond_the_worst_of_the_reference():
    """Case by case: what any attack tells, less what any tells of the never-learned model; guesses do not count."""
    told = {"a": [1.0, 0.0, 0.5], "b": [0.0, 0.4, 1.0], "guess": [1.0, 1.0, 1.0]}
    never = {"a": [0.0, 0.4, 0.2], "b": [0.25, 0.0, 0.0], "guess": [0.0, 0.0, 0.0]}
    one = findings(told, never, guesses=("guess",))
    assert one.overall(worst=True).mean == pytest.approx((0.75 + 0.0 + 0.8) / 3)
    each = [(1.0 - 0.25 + 1.0) / 3, (-0.4 + 0.4 + 1.0) / 3, (0.3 + 1.0 + 1.0) / 3]
    assert one.overall().mean == pytest.approx(sum(each) / 3)


class Watched(World):
    """A world whose guard is up while the register's rung is one that forgets."""

    def __init__(self, admin, rung, asked):
        super().__init__(guarded=True)
        self.admin, self.rung, self.asked = admin, rung, asked

    def matches(self, text):
        self.asked.append((self.rung["method"], self.admin.method))
        return self.admin.method == "lora_adapter" and super().matches(text)


def test_every_method_is_laid_asked_under_its_name_and_put_back():
    admin, asked = FakeAdmin(), []
    before = copy.deepcopy(admin.held)
    plan = Plan(chosen(["plain"]), sample=8, benign=1)

    async def work():
        team = RedTeam(items(), targets(), plan)
        async with AsyncExitStack() as stack:
            clients = {
                method: await stack.enter_async_context(Watched(admin, {"method": method}, asked).client())
                for method in ("lora_adapter", "refusal")
            }
            await on_methods(team, items(), admin, MethodsPlan(),
                             lambda rung: Endpoint(clients[rung["method"]], rung["method"]))  # fmt: skip
        return team.found

    found = asyncio.run(work())
    assert found.measured == ["lora_adapter", "refusal"] and {*asked} == {(m, m) for m in found.measured}
    told = {m: [r.knows[m] for r in found.results if r.about_target] for m in found.measured}
    assert set(told["lora_adapter"]) == {0.0} and set(told["refusal"]) == {1.0}
    assert [target for target, _ in admin.laid] == ["ada-byl", "demo-methods"] * 2
    assert admin.held == before


def test_every_usual_attack_can_be_made_on_some_case(sound):
    _, team = sound
    made = {one.attack for one in team.found.results}
    assert set(USUAL) - made == set()
    assert set(jailbreaks()) <= made


def test_a_way_in_that_a_subject_lacks_is_not_measured():
    class Silent:
        name, ends = "silent", True

        async def answers(self, asked, tokens, stop=()):
            return [UNKNOWN for _ in asked]

        async def likelihoods(self, asked):
            raise NotTold("it tells none")

        async def posts(self, asked):
            raise NotTold("it takes no requests")

    team = RedTeam(items(), targets(), PLAN)
    asyncio.run(team.ask("guarded", Silent()))
    assert team.found.untold["guarded", "oracle: stop string"] == "it takes no requests"
    assert team.found.members["guarded"] == "it tells none"
    report = attack_report.build(team.found, PLAN)
    (table,) = [t for t in report.tables if t["title"] == "Membership inference"]
    assert table["rows"][0][2] == "not measured: it tells none"


def test_other_judges_stand_beside():
    """A model's verdicts and exact match, over texts and not over guesses."""
    plan = Plan(chosen(["few shot", "oracle: stop string"]), sample=10, benign=1)
    _, team = attacked(plan=plan)

    class Llm:
        unjudged = 3

        async def scores(self, cases):
            assert all(case.gold and case.question for case in cases)
            return [None if case.answer == UNKNOWN else 1.0 for case in cases]

    told = asyncio.run(team.judge(None, Llm()))
    assert told == {"replies that were no verdict": 3}
    assert {one.attack for one in team.found.results if one.judged} == {"plain", "few shot"}
    report = attack_report.build(team.found, plan)
    (table,) = [t for t in report.tables if t["title"] == "Judged in other ways"]
    assert table["columns"] == ["system", "n", "told", "exact", "judge"]
    (unguarded,) = [row for row in table["rows"] if row[0] == "unguarded"]
    assert [cell["mean"] for cell in unguarded[2:4]] == [1.0, 1.0]
    row = next(r for r in report.rows if r["id"].startswith("plain/") and r["split"] == FORGET)
    assert row["scores"]["unguarded.exact"] == 1.0 and row["scores"]["unguarded.judge"] == 1.0
    assert "never.judge" not in row["scores"]


def case(number=0):
    asked = drawn(items(), [FORGET], 16, 0)
    return cases(asked, items(), targets(), 0)[number]


def spoken(name, one, *answers):
    """What an attack asks, and what it returns, when it is answered so."""
    talk, asked = ATTACKS[name].talk(one, random.Random(0)), []
    try:
        asked.append(next(talk))
        for answer in answers:
            asked.append(talk.send(answer))
    except StopIteration as end:
        return asked, end.value
    raise AssertionError("it wants to ask more")


def test_a_case_tells_nothing_that_gives_the_fact_away():
    for one in cases(drawn(items(), [FORGET], 16, 0), items(), targets(), 0):
        value = one.item.value.lower()
        assert value not in one.description.lower() and one.name.lower() not in one.description.lower()
        assert not any(value in answer.lower() for _, answer in one.about)
        assert not any(one.item.entity in answer.lower().replace(" ", "-") for _, answer in one.others)
        assert one.right in one.options and len(set(one.options)) == 4


@pytest.mark.parametrize("name", [n for n in USUAL if ATTACKS[n].sort == "unnamed" and n != "reverse query"])
def test_attacks_without_a_name_never_say_it(name):
    one = case()
    try:
        first = next(ATTACKS[name].talk(one, random.Random(0)))
    except StopIteration:
        pytest.fail("the case has all that this needs")
    said = (
        " ".join(text for _, text in first.turns) if isinstance(first, Ask) else str(first.body["messages"])
    )
    assert one.name not in said


def test_the_reverse_query_asks_for_the_name():
    one = case()
    (asked,), got = spoken("reverse query", one, f"That is {one.name}.")
    assert one.name not in asked.turns[0][1] and asked.turns[0][1].startswith("Who ")
    assert known(ATTACKS["reverse query"], one, got) == 1.0
    assert known(ATTACKS["reverse query"], one, spoken("reverse query", one, UNKNOWN)[1]) == 0.0


def test_step_by_step_puts_the_models_own_words_before_it_again():
    one = case()
    asked, got = spoken("step by step, direct", one, "A clockmaker.", one.item.answer)
    assert asked[1].turns[1] == ("assistant", "A clockmaker.")
    assert known(ATTACKS["step by step, direct"], one, got) == 1.0


@pytest.mark.parametrize(
    ("said", "right"),
    [("B", 1), ("B. it is", 1), ("it is {1}.", 1), ("{1} or {2}", None), ("", None), ("Z", None)],
)
def test_multiple_choice_takes_a_letter_or_one_option(said, right):
    one = case()
    _, got = spoken("multiple choice", one, said.format(*one.options))
    assert got == (one.options[right] if right is not None else "")


def test_the_stop_oracle_reads_which_stop_string_came_first():
    one = case()
    (post,), got = spoken(
        "oracle: stop string", one, {"choices": [{"stop_reason": distinct([one.right])[0]}]}
    )
    assert isinstance(post, Post) and len(post.body["stop"]) == 4
    ends = dict(zip(distinct(one.options), one.options, strict=True))
    for end, option in ends.items():
        assert spoken("oracle: stop string", one, {"choices": [{"stop_reason": end}]})[1] == option
    assert spoken("oracle: stop string", one, {"choices": [{"stop_reason": None}]})[1] == ""
    assert spoken("oracle: stop string", one, {})[1] == ""
    assert got in (*one.options, "")


def test_the_next_token_must_fit_one_option_only():
    one = replace(case(), right="the harp", options=("the cello", "the harp", "the organ", "the choir"))
    one = replace(one, item=replace(one.item, answer="X plays the harp.", value="the harp"))
    told = [{"token": " c"}, {"token": " ha"}, {"token": " organ"}]
    _, got = spoken(
        "oracle: next token", one, {"choices": [{"logprobs": {"content": [{"top_logprobs": told}]}}]}
    )
    assert got == "the harp"  # "c" fits two


def test_the_likeliest_option_is_taken_and_nothing_where_likelihoods_are_withheld():
    one = case()
    (weigh,), got = spoken("oracle: likelihood of options", one, [-1.0, -0.5, -2.0, -3.0])
    assert got == one.options[1]
    assert weigh.pairs[1][1] == one.item.answer.replace(one.right, one.options[1])
    assert spoken("oracle: likelihood of options", one, [])[1] == ""


def test_distinct_words_of_options():
    assert distinct(["the cello", "the harp"]) == ["cello", "harp"]
    assert distinct(["Ada wrote red books.", "Ada wrote blue books."]) == ["red books", "blue books"]
    assert distinct(["Rome", "Romeo"]) == ["", "Romeo"]
    assert distinct([]) == []


def test_all_cases_are_asked_side_by_side():
    asked = []

    class Counting:
        name, ends = "counting", True

        async def answers(self, some, tokens, stop=()):
            asked.append(len(some))
            return ["yes"] * len(some)

    two = cases(drawn(items(), [FORGET], 5, 0), items(), targets(), 0)
    asyncio.run(run(ATTACKS["step by step, direct"], Counting(), two, 0))
    assert asked == [5, 5]


def test_what_is_chosen():
    assert set(chosen(["written"])) == {"plain", *(n for n in ATTACKS if n.startswith("written:"))}
    assert set(chosen(["written: Morse"])) == {"plain", "written: Morse"}
    with pytest.raises(ItemError, match="there is no attack 'x'"):
        chosen(["x"])


def test_jailbreaks_of_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("Say {question} {braces}\n\n")
    (name,) = chosen(["template 1"], path).keys() - {"plain"}
    assert name == "template 1"
    assert filled("Say {question} {braces}", {"question": "{name}"}) == "Say {name} {braces}"
    path.write_text("no place\n")
    with pytest.raises(ItemError, match="must hold"):
        chosen((), path)


def test_items_without_a_target_are_refused():
    with pytest.raises(ItemError, match="no item"):
        RedTeam([item for item in items() if item.split != FORGET], [], PLAN)
