"""What the console's pages show and do: they are the admin API's services, with its confinement, escaped."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from guard.context import RequestContext
from guard.detection.calibrate import Stratum, report
from guard.store.jobs import Report, Request
from guard.types import Admission, AppliedEdit, Decision, Evidence, Match
from server.console import show
from server.console.jobs import fields_of
from tests.server.console_app import ADMIN, console

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">'
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=&#34;alert(2)&#34;&gt;"
TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


@pytest.fixture
def desk(tmp_path):
    with console(tmp_path, program=TRAINER) as running:
        yield running


def form_of(browser, path):
    """The fields of the last form of a page, as a browser would send them unchanged."""
    from html.parser import HTMLParser

    class Fields(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.open, self.select = {}, None, None

        def handle_starttag(self, tag, attrs):
            given = dict(attrs)
            if tag == "form":
                self.found = {}
            elif tag == "input" and given.get("type") not in ("checkbox", "file"):
                self.found[given.get("name")] = given.get("value", "")
            elif tag == "textarea":
                self.open = given["name"]
                self.found[self.open] = ""
            elif tag == "select":
                self.select = given["name"]
            elif tag == "option" and self.select and ("selected" in given or self.select not in self.found):
                self.found[self.select] = given["value"]

        def handle_endtag(self, tag):
            if tag == "textarea":
                self.found[self.open] = self.found[self.open].removeprefix("\n")
                self.open = None
            elif tag == "select":
                self.select = None

        def handle_data(self, data):
            if self.open:
                self.found[self.open] += data

    fields = Fields()
    fields.feed(browser.get(path).text)
    del fields.found["token"]
    return fields.found


def send(browser, path, fields):
    """As browsers do: lines end with CR LF."""
    return browser.post(path, **{name: value.replace("\n", "\r\n") for name, value in fields.items()})


def decided(desk, decision_id="d1", tenant=None, action="intervene", target="jane-doe", events=(), at=None):
    match = Match(target, 1, 0.97, 0.81, "semantic", evidence=(Evidence(0, 4, 12),))
    context = RequestContext(
        decision_id, "/v1/chat/completions", at or time.time(), tenant=tenant, model="demo"
    )
    context.admissions[(1,)] = Admission(Decision(action, 3, (match,), timings_ms={"total": 6.4}))
    context.applied.append("embedding_corruption")
    context.edits.append(AppliedEdit("embedding", None, 5, 4, 1))
    context.events += events
    desk.admin.log.record(context, 200, context.received_at + 0.1)
    desk.admin.log.flush()


class TestOverview:
    def test_shows_what_failed_and_what_expired_first(self, desk, monkeypatch):
        desk.put("old", name="Old", expires_at="2031-01-01T00:00:00Z")
        state = desk.admin.register._ledger
        monkeypatch.setattr(state, "_clock", lambda: 2_000_000_000.0)
        status = desk.admin.register.status
        failed = [{"id": "broken", "error": ATTACK}]
        monkeypatch.setattr(desk.admin.register, "status", lambda t=None: {**status(t), "failed": failed})
        text = desk.browser(ADMIN).get("/console").text
        assert ESCAPED in text and ATTACK not in text
        assert 'class="alarm"' in text and "Expired: not enforced any more" in text and "2031-01-01" in text
        assert "Ready: engine, edit sites" in text and "GuardedWorker" in text and "semantic" in text

    def test_counts_a_tenants_own_targets(self, desk):
        desk.put("ours", name="Ours", scope={"tenants": ["acme"]})
        desk.put("theirs", name="Theirs")
        counts = re.findall(
            r"<strong>(\d+)</strong> active", desk.as_("auditor", "acme").get("/console").text
        )
        assert counts == ["1"]


class TestTargets:
    def test_are_found_by_text_state_and_tag_a_page_at_a_time(self, desk):
        for i in range(7):
            desk.put(f"t{i}", name=f"Target {i}", tags=["odd" if i % 2 else "even"], aliases=[f"Alias{i}"])
        browser = desk.browser(ADMIN)

        def listed(query):
            return re.findall(r"<code>(t\d)</code>", browser.get(f"/console/targets?{query}").text)

        assert (
            listed("search=ALIAS3") == ["t3"]
            and listed("search=t5") == ["t5"]
            and listed("tag=odd") == ["t1", "t3", "t5"]
        )
        assert listed("state=failed") == [] and browser.get("/console/targets?state=odd").status_code == 400
        seen, query = [], "limit=3"
        while query:
            page = browser.get(f"/console/targets?{query}").text
            seen += re.findall(r"<code>(t\d)</code>", page)
            following = re.search(r'rel="next" href="\?([^"]+)"', page)
            query = following[1].replace("&amp;", "&") if following else None
        assert seen == [f"t{i}" for i in range(7)]

    def test_of_others_do_not_exist_for_a_tenant(self, desk):
        desk.put("ours", name="Ours", scope={"tenants": ["acme"]})
        desk.put("theirs", name="Theirs")
        browser = desk.as_("operator", "acme")
        text = browser.get("/console/targets").text + browser.get("/console/calibration").text
        assert "Ours" in text and "Theirs" not in text
        for path in ("", "/edit", "/delete"):
            assert browser.get(f"/console/targets/theirs{path}").status_code == 404
        assert (
            browser.post("/console/targets/theirs/delete", action="purge", confirm="theirs").status_code
            == 404
        )
        assert desk.as_("auditor", "acme").get("/console/targets/theirs/evidence").status_code == 404

    def test_are_written_by_a_form(self, desk):
        browser = desk.as_("operator")
        fields = form_of(browser, "/console/new-target")
        fields |= {
            "name": "Jane Doe",
            "examples": "Where does Jane Doe live?\n\nWho is Jane Doe?",
            "tags": "hr",
        }
        fields |= {
            "intervention": '[{"method": "refusal"}]',
            "expires_at": "2031-02-03T04:05:06",
            "metadata": '{"a": {"b": 1}}',
        }
        assert (
            send(browser, "/console/new-target", fields).headers["location"]
            == "/console/targets/jane-doe?done=written"
        )
        view = desk.admin.http.get("/targets/jane-doe").json()
        assert view["examples"] == ["Where does Jane Doe live?", "Who is Jane Doe?"]
        assert view["intervention"][0]["method"] == "refusal" and view["expires_at"] == "2031-02-03T04:05:06Z"
        assert view["metadata"] == {"a": {"b": 1}} and view["policy"]["max_tries"] == 2

    def test_stay_as_they_are_when_the_form_is_sent_back(self, desk):
        odd = [
            "one\nof two lines",
            "[looks like JSON",
            "  blank ends ",
            'quotes " and <tags>',
            "\nbegins a line",
        ]
        written = {"name": "Jane", "examples": odd, "aliases": ["Janey"], "metadata": {"n": [1, {"x": None}]},
                   "threshold": {"score": 0.75}, "reply": {"style": "error", "text": "No."},
                   "policy": {"output": "reprompt", "max_tries": 3}, "scope": {"tenants": ["acme", "b c"]},
                   "intervention": {"method": "refusal"}, "reference": "T-1",
                   "expires_at": "2031-02-03T04:05:06Z"}  # fmt: skip
        desk.put("jane", **written)
        before = desk.admin.http.get("/targets/jane").json()
        browser = desk.browser(ADMIN)
        fields = form_of(browser, "/console/targets/jane/edit")
        assert send(browser, "/console/targets/jane/edit", fields).status_code == 303
        after = desk.admin.http.get("/targets/jane").json()
        changed = {"version", "updated_at"}
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in before.items() if k not in changed
        }
        assert after["version"] == before["version"] + 1

    @pytest.mark.parametrize(
        ("field", "value", "told"),
        [
            ("name", "", "name: "),
            ("name", "the", "fires on 31 %"),
            ("intervention", '{"method": "nothing"}', "no method"),
            ("intervention", "{", "rungs as JSON"),
            ("metadata", "[NaN]", "JSON object"),
            ("metadata", '{"a": NaN}', "JSON object"),
            ("examples", '["\\ud800"]', "JSON list"),
            ("threshold", "much", "number"),
            ("threshold", "0.9", "threshold.fpr"),
            ("policy.max_tries", "99", "max_tries"),
            ("aliases", "--", "letter or digit"),
            ("expires_at", "tomorrow", "expires_at"),
            ("id", "Not A Slug", "id must be"),
        ],
    )
    @pytest.mark.parametrize("action", ["save", "check"])
    def test_that_are_wrong_are_told_beside_the_field(self, desk, field, value, told, action):
        browser = desk.browser(ADMIN)
        fields = {**form_of(browser, "/console/new-target"), "name": "Jane", "action": action, field: value}
        answer = send(browser, "/console/new-target", fields)
        name = field.split(".")[0]
        problem = re.search(rf'id="problem-{name}">([^<]*)<', answer.text)
        assert problem and told in problem[1], answer.text
        assert desk.admin.http.get("/targets").json()["data"] == []

    @pytest.mark.parametrize("action", ["save", "check"])
    def test_that_are_wrong_in_several_fields_are_told_all_of_them(self, desk, action):
        browser = desk.browser(ADMIN)
        bad = {"name": "", "aliases": "--", "policy.max_tries": "99", "action": action}
        answer = send(browser, "/console/new-target", {**form_of(browser, "/console/new-target"), **bad})
        assert set(re.findall(r'id="problem-([\w.]+)"', answer.text)) == {"name", "aliases", "policy"}

    def test_are_only_checked_when_that_is_asked(self, desk):
        browser = desk.browser(ADMIN)
        fields = {**form_of(browser, "/console/new-target"), "name": "Jane", "action": "check"}
        answer = send(browser, "/console/new-target", fields)
        assert "It is not saved yet" in answer.text and 'value="Jane"' in answer.text
        assert desk.admin.http.get("/targets").json()["data"] == []

    def test_that_fire_on_ordinary_prompts_are_forced_once(self, desk):
        browser = desk.browser(ADMIN)
        fields = {**form_of(browser, "/console/new-target"), "name": "the", "id": "t", "force": "yes"}
        assert send(browser, "/console/new-target", fields).status_code == 303
        edited = {**form_of(browser, "/console/targets/t/edit"), "reference": "T-2"}
        assert (
            send(browser, "/console/targets/t/edit", {**edited, "action": "check"}).text.count(
                "not saved yet"
            )
            == 1
        )
        assert send(browser, "/console/targets/t/edit", edited).status_code == 303
        again = {**form_of(browser, "/console/targets/t/edit"), "aliases": "thee"}
        assert send(browser, "/console/targets/t/edit", again).status_code == 422

    def test_are_not_overwritten_unseen(self, desk):
        desk.put("jane", name="Jane")
        browser = desk.browser(ADMIN)
        fields = form_of(browser, "/console/targets/jane/edit")
        desk.put("jane", name="Jane", reference="somebody else's")
        assert send(browser, "/console/targets/jane/edit", {**fields, "reference": "mine"}).status_code == 412
        assert browser.post("/console/targets/jane/delete", action="delete", version="1").status_code == 412
        assert desk.admin.http.get("/targets/jane").json()["reference"] == "somebody else's"

    def test_of_a_tenant_are_written_in_its_scope_only(self, desk):
        browser = desk.as_("operator", "acme")
        fields = {**form_of(browser, "/console/new-target"), "name": "Jane"}
        assert fields["tenants"] == "acme"
        assert send(browser, "/console/new-target", {**fields, "tenants": ""}).status_code == 403
        assert send(browser, "/console/new-target", fields).status_code == 303

    def test_are_deleted_and_purged_after_a_typed_word(self, desk):
        for name in ("one", "two"):
            desk.put(name, name=name)
        browser = desk.browser(ADMIN)
        assert browser.post("/console/targets/one/delete", action="delete", version="1").status_code == 303
        refused = browser.post("/console/targets/two/delete", action="purge", version="1", confirm="one")
        assert refused.status_code == 400 and "type two to confirm" in refused.text
        assert desk.admin.http.get("/targets/two").is_success
        done = browser.post("/console/targets/two/delete", action="purge", version="1", confirm="two")
        assert done.headers["location"] == "/console/targets?done=purged"
        assert "Purged" in browser.get("/console/targets?done=purged").text
        assert desk.admin.store.targets.history("two") == [] and desk.admin.store.targets.history("one")

    def test_are_imported_from_a_file_or_from_lines(self, desk):
        browser = desk.browser(ADMIN)
        lines = '{"name": "Jane"}\nnonsense\n'
        answer = browser.post("/console/import", lines=lines)
        assert (
            answer.status_code == 200
            and "1 created, 0 updated, 1 refused" in answer.text
            and "Line 2:" in answer.text
        )
        sent = {"file": ("targets.jsonl", b'{"name": "Joan"}\n')}
        answer = browser.http.post("/console/import", data={"token": browser.token, "lines": ""}, files=sent,
                                   headers={"Origin": "http://lethe"})  # fmt: skip
        assert "1 created" in answer.text and desk.admin.http.get("/targets/joan").is_success
        assert browser.post("/console/import", lines="").status_code == 400
        assert (
            "0 created"
            in browser.post("/console/import", lines=lines.replace("Jane", "New"), atomic="yes").text
        )

    def test_show_their_evidence_to_those_who_may_read_decisions(self, desk):
        desk.put("jane", name="Jane")
        desk.put("jane", name="Jane", mode="shadow")
        auditor = desk.as_("auditor")
        page = auditor.get("/console/targets/jane").text
        assert "Versions" in page and page.count('data-label="Mode"') == 2
        bundle = auditor.get("/console/targets/jane/evidence")
        assert "attachment" in bundle.headers["content-disposition"] and bundle.json()["signature"]
        assert "Versions" not in desk.as_("operator").get("/console/targets/jane").text


class TestWhatAttackersWrote:
    def test_is_text_on_every_page(self, desk):
        desk.put("jane-doe", name=ATTACK, aliases=[ATTACK], description=ATTACK, examples=[ATTACK], tags=[ATTACK],
                 retain=[ATTACK], reference=ATTACK, metadata={ATTACK: ATTACK}, reply={"text": ATTACK},
                 intervention={"method": "guard_prompt", "params": {"text": ATTACK}})  # fmt: skip
        decided(desk, tenant=ATTACK, events=[{"event": ATTACK, ATTACK: ATTACK}])
        job = desk.admin.store.jobs.create("tuned", "jane-doe", None, Request({"act": ATTACK}, True), 1.0)
        claimed = desk.admin.store.jobs.claim("me", 1.0, 9e9)
        desk.admin.store.jobs.renew(claimed, 9e9, progress=0.5, report=Report((ATTACK,)), version=1)
        (desk.reports / "a.json").write_text(json.dumps({"said": ATTACK}))
        browser = desk.browser(ADMIN)
        pages = ["targets", f"targets?search={ATTACK}", "targets/jane-doe", "targets/jane-doe/edit", "calibration",
                 "audit", "targets/jane-doe/delete", "decisions", f"decisions?tenant={ATTACK}", "decisions/d1", "jobs",
                 f"jobs/{job.id}", "reports/a.json", f"targets/{ATTACK.replace('/', '')}",
                 f"new-job?kind={ATTACK}&target={ATTACK}"]  # fmt: skip
        for page in pages:
            text = browser.get(f"/console/{page}").text
            assert "<script>alert" not in text and "<img" not in text, page
        for page in ("targets/jane-doe", "decisions", "decisions/d1", f"jobs/{job.id}"):
            assert ESCAPED in browser.get(f"/console/{page}").text, page
        for answer in (
            browser.post("/console/playground", prompt=ATTACK, system=ATTACK, tenant=ATTACK, unguarded="yes"),
            browser.post("/console/import", lines=ATTACK),
            browser.post("/console/keys", role=ATTACK, tenant=ATTACK),
            browser.post("/console/new-target", name=ATTACK, intervention=ATTACK),
            browser.post("/console/new-job", kind="tuned", target=ATTACK, params__steps=ATTACK),
        ):
            assert "<script>alert" not in answer.text and "<img" not in answer.text
            assert "&lt;script&gt;" in answer.text, answer.request.url


class TestDecisions:
    def test_are_filtered_and_paged(self, desk):
        desk.put("jane-doe", name="Jane")
        desk.put("joan", name="Joan")
        for i in range(5):
            decided(desk, f"d{i}", at=1_700_000_000 + 60 * i, action="refuse" if i == 2 else "intervene",
                    target="joan" if i == 4 else "jane-doe", tenant="acme" if i == 1 else None)  # fmt: skip
        browser = desk.browser(ADMIN)

        def listed(query, who=browser):
            return re.findall(r'href="/console/decisions/(d\d)"', who.get(f"/console/decisions?{query}").text)

        assert listed("") == ["d4", "d3", "d2", "d1", "d0"]
        assert listed("target=joan") == ["d4"] and listed("action=refuse") == ["d2"]
        assert listed("since=2023-11-14T22:15:00") == ["d4", "d3", "d2"]
        assert listed("until=2023-11-14T22:15:00") == ["d1", "d0"] and listed("tenant=acme") == ["d1"]
        page = browser.get("/console/decisions?limit=2").text
        assert "data-live" in page
        following = re.search(r'rel="next" href="\?([^"]+)"', page)[1].replace("&amp;", "&")
        assert (
            listed(following) == ["d2", "d1"]
            and "data-live" not in browser.get(f"/console/decisions?{following}").text
        )
        tenant = desk.as_("auditor", "acme")
        assert listed("", tenant) == ["d1"] and listed("tenant=other", tenant) == []
        assert tenant.get("/console/decisions/d0").status_code == 404
        assert tenant.get("/console/decisions/d1").status_code == 200
        for bad in ("action=odd", "since=odd", "cursor=odd", "limit=0", "limit=x"):
            assert browser.get(f"/console/decisions?{bad}").status_code == 400

    def test_show_their_trace(self, desk):
        desk.put("jane-doe", name="Jane")
        decided(desk, events=[{"event": "bypass", "reason": "timeout"}])
        browser = desk.browser(ADMIN)
        text = browser.get("/console/decisions/d1").text
        for shown in ('data-label="Planned">5<', 'data-label="Applied">4<', 'data-label="From cache">1<', "0.970",
                      "message 0, 4 to 12", "The guard was bypassed", "reason: timeout", "embedding_corruption",
                      "6.4 ms"):  # fmt: skip
            assert shown in text, shown
        assert "bypass</span>" in browser.get("/console/decisions").text


class TestJobs:
    def test_are_started_by_the_form_of_their_kind(self, desk):
        desk.put("jane-doe", name="Jane")
        browser = desk.as_("operator")
        fields = form_of(browser, "/console/new-job?kind=tuned&target=jane-doe")
        assert set(fields) == {"kind", "target", "params.act", "params.steps", "params.adapters"}
        answer = send(browser, "/console/new-job", {**fields, "params.steps": "3", "attach": "yes"})
        job = desk.admin.http.get("/jobs").json()["data"][0]
        assert answer.headers["location"] == f"/console/jobs/{job['id']}"
        assert (job["kind"], job["target"], job["params"]) == (
            "tuned",
            "jane-doe",
            {"steps": 3, "attach": True},
        )
        page = browser.get(f"/console/jobs/{job['id']}").text
        assert "queued" in page and "data-live" in page and "Cancel" in page
        assert browser.post(f"/console/jobs/{job['id']}/end").headers["location"].endswith("done=cancelled")
        page = browser.get(f"/console/jobs/{job['id']}").text
        assert "data-live" not in page and "Forget this job" in page
        assert browser.post(f"/console/jobs/{job['id']}/end").headers["location"].endswith("done=forgotten")

    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"params.steps": "0"}, "params.steps"),
            ({"params.steps": "many"}, "params.steps"),
            ({"target": "nobody"}, "target"),
            ({"params.adapters": "short"}, "params.adapters"),
            ({"kind": "odd"}, "kind"),
        ],
    )
    def test_that_are_wrong_are_told_beside_the_field(self, desk, fields, place):
        desk.put("jane-doe", name="Jane")
        browser = desk.browser(ADMIN)
        sent = {
            "kind": "tuned",
            "target": "jane-doe",
            "params.steps": "",
            "params.act": "",
            "params.adapters": "",
        }
        answer = send(browser, "/console/new-job", {**sent, **fields})
        assert answer.status_code in (400, 404) and f'id="problem-{place}"' in answer.text, answer.text
        assert desk.admin.http.get("/jobs").json()["data"] == []

    def test_of_others_do_not_exist_for_a_tenant(self, desk):
        desk.put("jane-doe", name="Jane")
        job = desk.admin.store.jobs.create("tuned", "jane-doe", None, Request({}, True), 1.0)
        browser = desk.as_("operator", "acme")
        assert job.id not in browser.get("/console/jobs").text
        assert browser.get(f"/console/jobs/{job.id}").status_code == 404
        assert browser.post(f"/console/jobs/{job.id}/end").status_code == 404
        answer = browser.post("/console/new-job", kind="tuned", target="jane-doe")
        assert answer.status_code == 404 and asyncio.run(desk.admin.jobs.get(job.id)).state == "queued"

    def test_ask_for_every_parameter_but_paths(self):
        schema = {"properties": {
            "path": {"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]},
            "way": {"enum": ["a", "b"], "type": "string", "default": "a"},
            "flag": {"type": "boolean"},
            "rate": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "layers": {"anyOf": [{"type": "array"}, {"type": "string"}], "default": "all"},
        }}  # fmt: skip
        kinds = {name: of["kind"] for name, of in fields_of(schema).items()}
        assert kinds == {"way": "choice", "flag": "choice", "rate": "number", "layers": "json"}


class TestReports:
    def test_are_framed_without_rights(self, desk):
        (desk.reports / "eval.html").write_text("<h1>Figures</h1>")
        browser = desk.browser(ADMIN)
        assert "eval.html" in browser.get("/console/reports").text
        page = browser.get("/console/reports/eval.html")
        assert (
            "sandbox></iframe>" in page.text and "frame-src 'self'" in page.headers["content-security-policy"]
        )
        inner = browser.get("/console/reports/eval.html/page")
        policy = inner.headers["content-security-policy"]
        assert inner.text == "<h1>Figures</h1>" and policy.endswith("sandbox") and "script-src" not in policy
        assert policy.startswith("default-src 'none'") and inner.headers["x-frame-options"] == "SAMEORIGIN"

    def test_in_json_are_shown_and_saved(self, desk):
        (desk.reports / "eval.json").write_text('{"recall": 0.05}')
        browser = desk.browser(ADMIN)
        assert "&#34;recall&#34;: 0.05" in browser.get("/console/reports/eval.json").text
        assert "attachment" in browser.get("/console/reports/eval.json/page").headers["content-disposition"]

    def test_are_files_of_the_folder_and_nothing_else(self, desk):
        (desk.reports / "sub.html").mkdir()
        (desk.reports / "link.html").symlink_to("/etc/passwd")
        (desk.reports / ".hidden.html").write_text("x")
        (desk.reports.parent / "outside.html").write_text("x")
        browser = desk.browser(ADMIN)
        text = browser.get("/console/reports").text
        assert "There are none yet" in text
        for name in (
            "sub.html",
            "link.html",
            ".hidden.html",
            "..%2Foutside.html",
            "lethe.db",
            "nothing.html",
        ):
            for path in (f"/console/reports/{name}", f"/console/reports/{name}/page"):
                assert browser.get(path).status_code == 404, path


class TestKeys:
    def test_are_made_shown_once_and_revoked(self, desk):
        browser = desk.browser(ADMIN)
        page = browser.post("/console/keys", role="auditor", tenant="acme", expires_at="2090-01-01T00:00:00")
        key = re.search(r'value="(lk_[\w-]+)"', page.text)[1]
        (listed,) = desk.admin.http.get("/keys").json()["data"]
        assert (page.status_code, listed["role"], listed["tenant"]) == (201, "auditor", "acme")
        assert listed["expires_at"].startswith("2090-01-01T00:00:00")
        assert key not in browser.get("/console/keys").text
        desk.browser(key)
        assert browser.post(f"/console/keys/{listed['id']}/revoke").status_code == 303
        assert desk.browser().post("/console/login", key=key).status_code == 401
        assert browser.post("/console/keys/key_none/revoke").status_code == 404

    @pytest.mark.parametrize(
        "fields", [{"role": "king"}, {"role": "admin", "expires_at": "2001-01-01T00:00:00"}]
    )
    def test_that_cannot_be_made_are_told_why(self, desk, fields):
        answer = desk.browser(ADMIN).post("/console/keys", **fields)
        assert answer.status_code == 400 and "No key was made" in answer.text
        assert desk.admin.http.get("/keys").json()["data"] == []


class TestAudit:
    def test_holds_every_change_that_the_console_made(self, desk):
        key, token = desk.admin.authenticator.create("admin", None, None)
        browser = desk.browser(token)
        fields = {**form_of(browser, "/console/new-target"), "name": "Jane"}
        send(browser, "/console/new-target", {**fields, "action": "check"})
        send(browser, "/console/new-target", fields)
        send(browser, "/console/targets/jane/edit", form_of(browser, "/console/targets/jane/edit"))
        browser.post("/console/import", lines='{"name": "Joan"}')
        browser.post("/console/new-job", kind="tuned", target="jane")
        (job,) = desk.admin.http.get("/jobs").json()["data"]
        browser.post(f"/console/jobs/{job['id']}/end")
        *_, made = re.findall(r"<code>(key_\w+)</code>", browser.post("/console/keys", role="auditor").text)
        browser.post("/console/playground", prompt="Who is Jane?", unguarded="yes")
        browser.post("/console/playground", prompt="Who is Jane?")
        browser.post("/console/targets/jane/delete", action="delete", version="1")
        browser.post("/console/targets/jane/delete", action="delete", version="2")
        browser.post("/console/targets/joan/delete", action="purge", version="1", confirm="joan")
        browser.post(f"/console/keys/{made}/revoke")
        rows = [r for r in desk.admin.http.get("/audit").json()["data"] if r["key_id"] == key.id]
        assert [(r["action"], r["outcome"]) for r in reversed(rows)] == [
            ("targets.create", "done"),
            ("targets.put", "done"),
            ("targets.import", "done"),
            ("jobs.create", "done"),
            ("jobs.end", "done"),
            ("keys.create", "done"),
            ("playground.unguarded", "done"),
            ("targets.delete", "refused"),
            ("targets.delete", "done"),
            ("targets.purge", "done"),
            ("keys.revoke", "done"),
        ]
        assert {r["role"] for r in rows} == {"admin"} and all(r["source"] for r in rows)
        page = browser.get("/console/audit?action=targets.delete&verify=yes").text
        assert page.count('data-label="Action">targets.delete') == 2 and "Whole: " in page

    def test_is_what_a_change_waits_for(self, desk, monkeypatch):
        from guard.errors import GuardUnavailable

        def full(*_: object) -> None:
            raise GuardUnavailable("The store does not answer; try again.")

        browser = desk.browser(ADMIN)
        monkeypatch.setattr(desk.admin.store.audit, "add", full)
        answer = browser.post("/console/playground", prompt="Who is Jane?", unguarded="yes")
        assert answer.status_code == 503 and "Vintry" not in answer.text

    def test_shows_a_tenant_its_own(self, desk):
        browser = desk.as_("operator", "acme")
        send(browser, "/console/new-target", {**form_of(browser, "/console/new-target"), "name": "Jane"})
        desk.put("joan", name="Joan")
        page = desk.as_("auditor", "acme").get("/console/audit?verify=yes").text
        assert page.count('data-label="Action"') == 1 and "Whole: " not in page

    @pytest.mark.parametrize("lagging", [False, True])
    def test_other_servers_that_do_not_have_a_change_yet_are_told_of(self, desk, lagging):
        from guard.replica import Laggard

        desk.admin.laggards.extend([Laggard("b", 1)] * lagging)
        browser = desk.browser(ADMIN)
        fields = {**form_of(browser, "/console/new-target"), "name": "Jane"}
        place = send(browser, "/console/new-target", fields).headers["location"]
        pages = [
            browser.get(place),
            browser.post("/console/keys", role="auditor"),
            browser.post("/console/import", lines="{}"),
        ]
        assert [("Other servers of this store" in page.text) for page in pages] == [lagging] * 3


class TestShowing:
    def test_a_plot_draws_both_groups_and_the_threshold(self):
        strata = {"ordinary": Stratum(np.array([0.02, 0.03, 0.4]), 0.01, 300)}
        calibration = {
            "detectors": {
                "semantic": report(strata, np.array([0.91, 0.97]), 0.6),
                "lexical": {"threshold": 0.9},
            }
        }
        (plot,) = show.plots(calibration)
        assert plot.detector == "semantic" and plot.at == pytest.approx(8 + 0.6 * 464, abs=0.1)
        assert [round(bar.x) for bar in plot.negatives] == [8, 194] and len(plot.own) == 2
        tallest = show.GROUND - 14
        assert [bar.height for bar in plot.negatives] == [tallest, tallest / 2]
        assert all(
            bar.x >= 8 and bar.x + bar.width <= 472 and bar.y + bar.height == show.GROUND for bar in plot.own
        )

    @pytest.mark.parametrize(
        ("spans", "marked"),
        [
            ([], [("0123456789", False)]),
            ([(2, 4)], [("01", False), ("23", True), ("456789", False)]),
            ([(4, 6), (2, 5)], [("01", False), ("234", True), ("5", True), ("6789", False)]),
            ([(8, 99), (0, 1)], [("0", True), ("1234567", False), ("89", True)]),
            ([(3, 3), (20, 30)], [("0123456789", False)]),
        ],
    )
    def test_marks_lie_where_the_spans_are(self, spans, marked):
        assert show.marked("0123456789", spans) == marked

    @pytest.mark.parametrize(
        "items", [[], ["a", "b c"], ["a\nb"], ["[a"], [" a"], [""], ["a", "[b"], ["a\u2028x"], ["ü"]]
    )
    def test_lists_survive_the_form(self, items):
        assert show.from_lines(show.as_lines(items)) == items
