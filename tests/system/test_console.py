"""The console in a real Chromium: what attackers wrote stays text, keys and phones suffice; one flow on a real demo."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from guard.context import RequestContext
from guard.store.jobs import Report, Request
from guard.types import Admission, Decision, Match
from tests.browser import chromium, served
from tests.server.console_app import ADMIN, Console, console

pytestmark = pytest.mark.system

LONG = "Unbroken" * 24
ATTACKS = (
    '<script>document.title = "owned"; alert(1)</script>',
    "<img src=x onerror=\"document.title = 'owned'; alert(2)\">",
    "\"'><svg onload=alert(3)>",
    "</textarea><iframe srcdoc='<script>parent.alert(4)</script>'></iframe>",
    '<a href="javascript:alert(5)">x</a>{{ 7 * 7 }}<style>*{display:none}</style>',
)
PAGES = ("", "/targets", "/targets/jane-doe", "/targets/jane-doe/edit", "/targets/jane-doe/delete", "/new-target",
         "/import", "/calibration", "/playground", "/decisions", "/decisions/d0", "/jobs", "/new-job", "/reports",
         "/reports/attack.html", "/reports/attack.json", "/audit", "/keys", "/targets/nothing-here")  # fmt: skip

NAMELESS = """[...document.querySelectorAll(
    'input:not([type=hidden]), select, textarea, button, iframe, svg[role=img]'
)].filter(e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.title && !e.textContent.trim())
.map(e => e.outerHTML)"""
DOUBLES = """(ids => ids.filter((id, i) => ids.indexOf(id) !== i))(
    [...document.querySelectorAll('[id]')].map(e => e.id))"""
UNKNOWN = (
    "[...document.querySelectorAll('label[for]')].filter(l => !document.getElementById(l.htmlFor)).length"
)
FOREIGN = "document.querySelectorAll('main script, main img, main svg[onload], main a[href^=java]').length"


@dataclass
class Seen:
    """What must not happen while a page is open."""

    address: str
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on(
            "request", lambda r: self.strangers.append(r.url) if not r.url.startswith(self.address) else None
        )


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    with console(tmp_path_factory.mktemp("console")) as running:
        fill(running)
        running.admin.log.start()
        yield running
        running.admin.log.close()


@pytest.fixture(scope="module")
def address(desk):
    with served(desk.admin.app) as url:
        yield url


@pytest.fixture
def opened(browser, address):
    """Makes pages of a browser that is logged in, and looks at the end that nothing happened that must not."""
    contexts, seen = [], Seen(address)

    def make(*, key: str | None = ADMIN, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        seen.watch(page)
        if key:
            page.goto(f"{address}/console/login")
            page.fill("#key", key)
            page.keyboard.press("Enter")
            page.wait_for_url(f"{address}/console")
        return page

    make.seen = seen  # type: ignore[attr-defined]
    yield make
    for context in contexts:
        context.close()
    assert seen.dialogs == [] and seen.strangers == []


def fill(desk: Console) -> None:
    """Every place that shows somebody's words holds an attack and a word that does not break."""
    words = [*ATTACKS, LONG]
    desk.put("jane-doe", name="Jane Doe", examples=words, answers=words, retain=words, aliases=[a[:190] for a in words],
             tags=[a[:90] for a in words], description=" ".join(words), reference=" ".join(words),
             metadata={words[0]: words}, reply={"text": " ".join(words)},
             intervention={"method": "guard_prompt", "params": {"text": " ".join(words)}})  # fmt: skip
    desk.put("attack", name=ATTACKS[1][:200], expires_at="2026-01-01T00:00:00Z")
    for i, attack in enumerate(words):
        decide(desk, f"d{i}", tenant=attack, events=[{"event": attack, "reason": attack}])
    jobs = desk.admin.store.jobs
    for attack in words:
        jobs.create("tuned", "jane-doe", None, Request({"note": attack}, True), 1.0)
    claimed = jobs.claim("me", 1.0, 9e9)
    jobs.renew(claimed, 9e9, progress=0.5, report=Report(tuple(words)), version=1)
    (desk.reports / "attack.html").write_text("<h1>Figures</h1>" + "".join(ATTACKS[:4]))
    (desk.reports / "attack.json").write_text(f'["{LONG}", "<script>alert(6)</script>"]')


def decide(desk: Console, decision_id: str, tenant: str | None = None, events: Any = ()) -> None:
    match = Match("jane-doe", 1, 0.97, 0.81, "semantic")
    context = RequestContext(decision_id, "/v1/chat/completions", time.time(), tenant=tenant, model="demo")
    context.admissions[(1,)] = Admission(Decision("intervene", 3, (match,)))
    context.events += events
    desk.admin.log.record(context, 200, context.received_at + 0.1)
    desk.admin.log.flush()


def job_of(desk: Console) -> str:
    data = desk.admin.http.get("/jobs?state=running").json()["data"]
    return f"/jobs/{data[0]['id']}"


def test_what_attackers_wrote_is_never_run(desk, opened):
    page = opened()
    for path in (*PAGES, job_of(desk)):
        page.goto(f"{opened.seen.address}/console{path}")
        page.wait_for_load_state()
        assert "Lethe" in page.title() and "owned" not in page.title(), path
        assert page.evaluate(FOREIGN) == 0, path
    page.goto(f"{opened.seen.address}/console/targets/jane-doe")
    shown = page.text_content("main")
    for attack in ATTACKS:
        assert attack in shown
    page.goto(f"{opened.seen.address}/console/playground")
    for attack in ATTACKS:
        page.get_by_label("Prompt").fill(f"Jane Doe {attack}")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("heading", name="Without the guard").wait_for()
        assert page.locator("mark").first.text_content() == "Jane Doe"
        assert attack in page.text_content(".message")
    # The frame of a report refuses its scripts, and says so where nobody but us looks.
    assert all(
        "sandboxed" in told or "Content Security Policy" in told or "404" in told
        for told in opened.seen.errors
    )


def test_a_script_that_got_into_a_page_would_not_run(opened):
    page = opened()
    page.goto(f"{opened.seen.address}/console/targets")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(7)>')")
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'alert(8)'; document.body.append(s)"
    )
    page.wait_for_timeout(200)
    assert len([told for told in opened.seen.errors if "Content Security Policy" in told]) >= 2


def test_a_report_has_no_rights_in_its_frame(opened):
    page = opened()
    page.goto(f"{opened.seen.address}/console/reports/attack.html")
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").text_content() == "Figures"
    inner = next(f for f in page.frames if f.url.endswith("/page"))
    assert inner.evaluate("window.origin") == "null"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone(desk, opened, scheme):
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme=scheme)
    for path in (*PAGES, job_of(desk)):
        page.goto(f"{opened.seen.address}/console{path}")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, (path, wide)


def test_everything_has_a_name_and_a_place(desk, opened):
    page = opened()
    for path in (*PAGES[:-1], job_of(desk)):
        page.goto(f"{opened.seen.address}/console{path}")
        nameless = page.evaluate(NAMELESS)
        assert nameless == [], path
        for one in ("main", "h1", "nav[aria-label=Console]", "header"):
            assert page.locator(one).count() == 1, (path, one)
        doubles = page.evaluate(DOUBLES)
        assert doubles == [], path
        unknown = page.evaluate(UNKNOWN)
        assert unknown == 0, path


def test_the_keyboard_is_enough(desk, opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(f"{opened.seen.address}/console/new-target")
    page.locator("#f-name").focus()
    page.keyboard.type("Typed By Keys")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.value") == "save":
            break
        ring = page.evaluate(
            "(s => s.outlineStyle + s.outlineWidth)(getComputedStyle(document.activeElement))"
        )
        assert ring == "solid3px", page.evaluate("document.activeElement.outerHTML")
    page.keyboard.press("Enter")
    page.get_by_text("It is enforced by this server now").wait_for()
    assert desk.admin.http.get("/targets/typed-by-keys").is_success


def test_pages_work_without_scripts(desk, opened):
    page = opened(java_script_enabled=False)
    page.goto(f"{opened.seen.address}/console/new-target")
    page.fill("#f-name", "No Scripts")
    page.fill("#f-threshold", "much")
    page.get_by_role("button", name="Register").click()
    assert page.locator("#problem-threshold").text_content() == "Write a number."
    assert page.locator("#f-threshold").get_attribute("aria-describedby") == "problem-threshold"
    page.fill("#f-threshold", "0.02")
    page.get_by_role("button", name="Only check").click()
    page.get_by_text("It is not saved yet").wait_for()
    page.get_by_role("button", name="Register").click()
    page.get_by_text("It is enforced by this server now").wait_for()
    assert desk.admin.http.get("/targets/no-scripts").json()["threshold"] == {"fpr": 0.02}
    page.goto(f"{opened.seen.address}/console/decisions")
    decide(desk, "without-scripts")
    page.get_by_role("link", name="Reload").click()
    assert page.locator("a[href$=without-scripts]").count() == 1
    assert page.get_by_role("button", name="Pause").count() == 0
    page.get_by_role("button", name="Log out").click()
    page.goto(f"{opened.seen.address}/console/targets")
    assert page.url.endswith("/console/login")


def test_the_feed_is_live_until_it_is_paused(desk, opened):
    page = opened()
    page.goto(f"{opened.seen.address}/console/decisions?target=jane-doe")
    decide(desk, "live-1", events=[{"event": ATTACKS[0]}])
    page.locator("a[href$=live-1]").wait_for(timeout=10_000)
    page.get_by_role("button", name="Pause").click()
    decide(desk, "live-2")
    page.wait_for_timeout(3_000)
    assert page.locator("a[href$=live-2]").count() == 0
    page.get_by_role("button", name="Go on").click()
    page.locator("a[href$=live-2]").wait_for(timeout=10_000)


def test_a_page_that_renews_itself_leaves_when_the_key_is_revoked(desk, opened):
    key, token = desk.admin.authenticator.create("auditor", None, None)
    page = opened(key=token)
    page.goto(f"{opened.seen.address}/console/decisions")
    desk.admin.authenticator.revoke(key.id)
    page.get_by_label("API key").wait_for(timeout=10_000)
    assert page.locator("nav").count() == 0


def test_a_purge_wants_the_id_typed(desk, opened):
    desk.put("to-purge", name="To Purge")
    page = opened()
    page.goto(f"{opened.seen.address}/console/targets/to-purge/delete")
    page.get_by_label("Type to-purge to confirm").fill("something")
    page.get_by_role("button", name="Purge").click()
    page.get_by_text("Nothing was purged").wait_for()
    page.get_by_label("Type to-purge to confirm").fill("to-purge")
    page.get_by_role("button", name="Purge").click()
    page.get_by_text("erased from every version").wait_for()
    assert desk.admin.store.targets.history("to-purge") == []


def test_a_form_of_another_site_does_nothing(desk, opened, browser):
    page = opened()
    seen = {}
    page.on("response", lambda r: seen.update({r.url: r.status}) if r.request.method == "POST" else None)
    other = opened.seen.address.replace("127.0.0.1", "localhost")
    page.route(f"{other}/evil", lambda r: r.fulfill(content_type="text/html", body=f"""
        <form method=post action="{opened.seen.address}/console/targets/jane-doe/delete">
        <input name=action value=delete><input name=version value=1><button id=go>x</button></form>"""))  # fmt: skip
    page.goto(f"{other}/evil")
    opened.seen.strangers.clear()  # that is the other site
    page.click("#go")
    page.wait_for_url(re.compile("login"))
    assert desk.admin.http.get("/targets/jane-doe").is_success


def test_on_the_demo_a_question_is_answered_with_and_without_the_guard(tmp_path, browser):
    from tests.system.screenshots import KNOWN, OTHER, TARGET, ask, demo, log_in

    with demo(tmp_path) as server:
        page = browser.new_context().new_page()
        log_in(page, server)
        assert page.get_by_text("Ready: engine, edit sites").count() == 1
        page.goto(f"{server.base_url}/console/targets?search=yarley")
        page.get_by_role("link", name="Limir Yarley").click()
        page.locator("figure.plot svg rect.own").first.wait_for(state="attached")
        ask(page, server, KNOWN)
        assert "Limir Yarley" in page.locator("mark").all_text_contents()
        guarded, raw = (page.locator(f"section.answer:has(#{name})") for name in ("guarded", "raw"))
        assert "Vintry" in raw.text_content() and "Vintry" not in guarded.text_content()
        done = re.search(r"embedding: (\d+) of (\d+) positions edited", guarded.text_content())
        assert done and int(done[1]) == int(done[2]) > 0
        link = guarded.get_by_role("link", name="Its decision").get_attribute("href")
        page.goto(f"{server.base_url}/console/decisions?target={TARGET}")
        page.locator(f"a[href='{link}']").click()
        planned = page.locator("td[data-label=Planned]").first.text_content()
        assert page.locator("td[data-label=Applied]").first.text_content() == planned == done[2]
        page.goto(f"{server.base_url}/console/decisions")
        assert page.get_by_text("bypass", exact=True).count() == 1
        ask(page, server, OTHER)
        answers = [part.locator("p.said").text_content() for part in page.locator("section.answer").all()]
        assert answers[0] == answers[1] and page.locator("mark").count() == 0
