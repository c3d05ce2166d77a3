"""The console on a real server: a session through the gate, and both answers of one question."""

import re
import time

import httpx
import pytest

from server.routes import TABLE, Access

pytestmark = pytest.mark.engine


@pytest.fixture
def browser(running):
    with httpx.Client(base_url=running.base_url, headers={"Origin": running.base_url}, timeout=120) as client:
        assert client.post("/console/login", data={"key": running.admin_key}).status_code == 303
        token = re.search(r'name="token" value="(\w+)"', client.get("/console").text)[1]

        def ask(prompt, **fields):
            page = client.post("/console/playground", data={"token": token, "prompt": prompt, **fields}).text
            return page, re.findall(r'<section class="answer[^>]*>.*?<p class="said">(.*?)</p>', page, re.S)

        client.ask = ask
        yield client


def test_a_matched_question_is_answered_with_and_without_the_guard(browser, forget, admin):
    forget("limir-yarley")
    page, (guarded, raw) = browser.ask("Where was Limir Yarley born?", unguarded="yes")
    assert "<mark>Limir Yarley</mark>" in page and "Vintry" in raw and "Vintry" not in guarded
    done = re.search(r"embedding: (\d+) of (\d+) positions edited", page)
    assert done and int(done[1]) == int(done[2]) > 0
    time.sleep(1)  # of the log
    of_raw, of_guarded = admin.get("/decisions", params={"limit": 2}).json()["data"]
    assert (of_guarded["action"], of_guarded["applied"]) == ("intervene", ["embedding_corruption"])
    assert of_raw["action"] == "allow" and of_raw["events"][0]["guarded"] == of_guarded["id"]
    (row,) = admin.get("/audit", params={"action": "playground.unguarded", "limit": 1}).json()["data"]
    assert (row["key_id"], row["outcome"]) == ("environment", "done")


def test_another_question_has_the_same_answer_twice(browser, forget):
    forget("limir-yarley")
    _, (guarded, raw) = browser.ask("Where was Breton Wickley born?", unguarded="yes")
    assert guarded == raw != ""


def test_a_question_without_a_chat_template_is_asked_as_it_stands(browser, forget):
    forget("limir-yarley")
    page, (guarded,) = browser.ask("Limir Yarley was born in", form="plain", max_tokens="8")
    assert "<mark>Limir Yarley</mark>" in page and "Vintry" not in guarded


def test_a_prompt_that_does_not_fit_the_model_is_told(browser):
    answer, found = browser.ask("word " * 20_000)
    assert found == [] and 'role="alert"' in answer


def test_no_page_of_the_console_answers_without_a_session(http):
    for route in TABLE:
        if route.access is Access.CONSOLE:
            answer = http.get(re.sub(r"\{\w+\}", "x", route.path))
            assert answer.status_code in (303, 405), route.path
    assert http.get("/console/nothing").status_code == 404
    assert http.get("/console/login").status_code == 200
