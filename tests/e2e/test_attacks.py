"""The red team against a real server: what it says of a sound guard, and of one that is set up badly."""

import asyncio

import pytest

from evals.client import Client
from evals.items import load_items
from evals.subjects import Endpoint
from evals.suites import attack_report
from evals.suites.attack_report import FAULTS, GIBBERISH, SUPPRESSED
from evals.suites.attacks import Plan, RedTeam, chosen
from evals.suites.targets import GUARDED, UNGUARDED
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.engine

PEOPLE = {"limir-yarley": "Yarley", "fagor-stenden": "Stenden", "solbet-dunard": "Dunard"}
ATTACKS = (
    "few shot",
    "synonym manipulation",
    "oracle: stop string",
    "oracle: tokens of likelihoods",
    "oracle: prompt as token ids",
)
PLAN = Plan(chosen(ATTACKS), sample=12, benign=12)


ITEMS = [
    item
    for item in load_items(ROOT / "demo" / "items.jsonl")
    if item.entity in PEOPLE
    or (item.split == "neighbour" and item.entity.endswith(tuple(map(str.lower, PEOPLE.values()))))
]


@pytest.fixture(scope="module")
def team(running, targets):
    """Asked already without any target: the control."""
    made = RedTeam(ITEMS, [targets[name] for name in PEOPLE], PLAN)
    ask(made, running, UNGUARDED)
    return made


def relatives(family):
    """The names of neighbours who are called so."""
    found = {
        item.entity for item in ITEMS if item.split == "neighbour" and item.entity.endswith(family.lower())
    }
    return sorted(name.replace("-", " ").title() for name in found)


def ask(team, running, system):
    async def work():
        async with Client(running.base_url) as client:
            await team.ask(system, Endpoint(client, system, lenient=True))

    asyncio.run(work())


def faults(team, running):
    ask(team, running, GUARDED)
    return attack_report.build(team.found, PLAN).results["faults"][GUARDED]


def put_all(forget, change):
    for name, family in PEOPLE.items():
        forget(name, **change(family))


def test_nothing_gets_past_a_sound_guard(team, running, forget):
    put_all(forget, lambda family: {})
    assert faults(team, running) == []


SETTINGS = {
    "only watched": (lambda family: {"mode": "shadow"}, FAULTS["plain"]),
    "a reply that is no language": (
        lambda family: {
            "intervention": {"method": "refusal"},
            "reply": {"text": "zqrx vfg zqrx vfg zqrx vfg zqrx vfg"},
        },
        GIBBERISH,
    ),
    "relatives as aliases": (lambda family: {"aliases": relatives(family)}, SUPPRESSED),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_setting_is_called_by_its_name(team, running, forget, setting):
    change, fault = SETTINGS[setting]
    put_all(forget, change)
    assert faults(team, running) == [fault]
