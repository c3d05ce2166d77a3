"""The playground: who gets which answer, and what the log says of it."""

from __future__ import annotations

import re

import pytest

from guard.errors import GuardUnavailable
from server.playground import Question
from server.routes import TABLE
from tests.server.console_app import ADMIN, console

PROMPT = "Where does Jane Doe live? Jane Doe, I say."


@pytest.fixture
def desk(tmp_path):
    with console(tmp_path) as running:
        running.put("jane-doe", name="Jane Doe", examples=["Where does Jane Doe live?"])
        yield running


def logged(desk):
    desk.admin.log.flush()
    return desk.admin.http.get("/decisions").json()["data"]


def test_an_admin_sees_both_answers_and_where_the_prompt_matched(desk):
    text = desk.browser(ADMIN).post("/console/playground", prompt=PROMPT, unguarded="yes").text
    assert "Where does <mark>Jane Doe</mark> live?" in text
    assert "I have never heard of that person." in text and "Jane Doe lives in Vintry" in text
    assert "2 of 2 positions edited" in text and "lexical" in text and "0.800" in text
    assert "Nobody else gets this" in text


def test_the_answer_without_the_guard_has_a_record_that_says_so(desk):
    key, token = desk.admin.authenticator.create("admin", None, None)
    desk.browser(token).post("/console/playground", prompt=PROMPT, unguarded="yes")
    raw, guarded = logged(desk)
    assert (guarded["action"], guarded["applied"]) == ("intervene", ["embedding_corruption"])
    assert guarded["targets"][0]["id"] == "jane-doe" and guarded["events"] == []
    assert (raw["action"], raw["applied"], raw["edits"]) == ("allow", [], [])
    (event,) = raw["events"]
    assert event["event"] == "bypass" and event["key"] == key.id and event["guarded"] == guarded["id"]
    assert raw["prompt_digest"] == guarded["prompt_digest"] and raw["route"] == "/console/playground"


def test_it_is_not_shown_when_it_cannot_be_recorded(desk, monkeypatch):
    monkeypatch.setattr(desk.admin.log, "_queue_size", 1)
    answer = desk.browser(ADMIN).post("/console/playground", prompt=PROMPT, unguarded="yes")
    assert (
        answer.status_code == 503 and "Vintry" not in answer.text and "could not be recorded" in answer.text
    )


def test_it_is_not_given_unless_it_is_asked_for(desk):
    text = desk.browser(ADMIN).post("/console/playground", prompt=PROMPT).text
    assert "never heard" in text and "Vintry" not in text and len(logged(desk)) == 1


@pytest.mark.parametrize(
    ("role", "tenant"), [("auditor", None), ("auditor", "acme"), ("admin", "acme"), ("operator", None)]
)
def test_nobody_else_gets_it(desk, role, tenant):
    browser = desk.as_(role, tenant)
    assert 'name="unguarded"' not in browser.get("/console/playground").text
    answer = browser.post("/console/playground", prompt=PROMPT, unguarded="yes")
    assert "Vintry" not in answer.text
    assert not any(event["event"] == "bypass" for one in logged(desk) for event in one["events"])


def test_an_auditor_sees_the_verdict_and_nothing_is_generated(desk):
    text = desk.as_("auditor").post("/console/playground", prompt=PROMPT).text
    assert "<mark>Jane Doe</mark>" in text and "intervene" in text
    assert "never heard" not in text and logged(desk) == []


def test_a_tenants_admin_asks_for_its_tenant(desk):
    desk.put("joan", name="Joan", scope={"tenants": ["other"]})
    browser = desk.as_("admin", "acme")
    assert "<mark>" not in browser.post("/console/playground", prompt="Who is Joan?").text
    assert logged(desk)[0]["tenant"] == "acme"
    assert browser.post("/console/playground", prompt="Who is Joan?", tenant="other").status_code == 400
    assert (
        "<mark>"
        in desk.browser(ADMIN).post("/console/playground", prompt="Who is Joan?", tenant="other").text
    )


def test_replies_in_an_answers_place_are_told(desk):
    desk.put("joan", name="Joan", reply={"style": "error", "text": "Not here."})
    text = desk.browser(ADMIN).post("/console/playground", prompt="Who is Joan?").text
    assert "The client gets an error, 400" in text and "Not here." in text


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"prompt": "  "}, "Type a prompt."), ({"prompt": "x", "max_tokens": "0"}, "from 1 to"),
     ({"prompt": "x", "max_tokens": "99999"}, "from 1 to")],
)  # fmt: skip
def test_what_cannot_be_asked_is_told(desk, fields, told):
    answer = desk.browser(ADMIN).post("/console/playground", **fields)
    assert answer.status_code == 400 and told in answer.text and logged(desk) == []


async def test_a_guard_that_cannot_judge_shows_no_answer_of_either_sort(desk):
    playground = desk.desk.playground

    async def failing(*_: object) -> None:
        raise GuardUnavailable("The request could not be checked; try again.")

    playground.checker.guard.admit = failing
    with pytest.raises(GuardUnavailable):
        await playground.ask(Question(PROMPT), unguarded=True)
    (record,) = logged(desk)
    assert (record["action"], record["status"]) == ("refuse", 503) and record["events"] == []


def test_no_route_outside_the_console_leads_to_it():
    """The answer without the guard is called in one place, and that place is called by the console's page alone."""
    from pathlib import Path

    root = Path(__file__).parents[2]
    callers = {
        str(path.relative_to(root)): set(re.findall(r"\.(?:unguarded\(|ask\(|canary\()", path.read_text()))
        for folder in ("guard", "server")
        for path in (root / folder).rglob("*.py")
    }
    assert {name for name, found in callers.items() if ".unguarded(" in found} == {"server/playground.py"}
    assert {name for name, found in callers.items() if ".ask(" in found and "console" in name} == {
        "server/console/playing.py"
    }
    assert {r.path for r in TABLE if "playground" in r.path} == {"/console/playground"}
