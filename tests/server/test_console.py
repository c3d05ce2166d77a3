"""What every page of the console passes: sessions, keys, roles, tenants, forms, headers."""

from __future__ import annotations

import re

import pytest

from guard.config import ConsoleSettings
from server.auth import PERMISSIONS, Permission
from server.console import PAGES
from server.console.desk import COOKIE, ENTRY, client_of
from server.console.sessions import Attempts, Sessions, form_token, is_form_token
from server.routes import TABLE, Access, find
from tests.guard.register_fakes import Clock
from tests.server.console_app import ADMIN, ORIGIN, console

PLACES = {"{id}": "jane-doe", "{name}": "eval.html"}
ROLES = ("auditor", "operator", "admin")


def path_of(page):
    return "/console" + re.sub(r"\{\w+\}", lambda found: PLACES[found[0]], page.path)


@pytest.fixture
def desk(tmp_path):
    with console(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with console(tmp_path_factory.mktemp("console")) as running:
        running.put("jane-doe", name="Jane Doe")
        (running.reports / "eval.html").write_text("<p>fine</p>")
        yield running


def test_the_route_table_has_every_page_and_no_other():
    public = {"/console/login", "/console/static/{name}"}
    pages = {"/console" + page.path for page in PAGES}
    assert {r.path for r in TABLE if r.access is Access.CONSOLE} == pages
    assert {r.path for r in TABLE if r.path.startswith("/console")} == pages | public
    assert find("/console/static/console.css").access is Access.PUBLIC
    assert find("/console/nothing") is None and find("/console/targets/a/b/c") is None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.method} {p.path}")
class TestEveryPage:
    def test_without_a_session_leads_to_the_login(self, shared, page):
        answer = shared.browser().http.request(page.method, path_of(page), headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")

    @pytest.mark.parametrize("role", ROLES)
    def test_is_for_the_roles_that_the_admin_api_lets_do_it(self, shared, page, role):
        if page.method == "POST":
            # The token is wrong: who may not do it is told that, and not that the token is wrong.
            answer = shared.as_(role).post(path_of(page), token="wrong")
            allowed = "may not do this" not in answer.text
        else:
            answer = shared.as_(role).get(path_of(page))
            allowed = answer.status_code != 403
        assert allowed == (page.permission is None or page.permission in PERMISSIONS[role])
        assert answer.status_code < 500

    def test_that_is_for_the_whole_server_refuses_a_tenant(self, shared, page):
        browser = shared.as_("admin", "acme")
        answer = (
            browser.get(path_of(page)) if page.method == "GET" else browser.post(path_of(page), token="x")
        )
        assert ("belongs to a tenant" in answer.text) == page.whole

    def test_carries_the_headers_that_keep_it_to_itself(self, shared, page):
        browser = shared.browser(ADMIN)
        answer = (
            browser.get(path_of(page)) if page.method == "GET" else browser.post(path_of(page), token="x")
        )
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        if page.path != "/reports/{name}/page":
            policy = answer.headers["content-security-policy"]
            for directive in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'",
                              "connect-src 'self'", "form-action 'self'", "frame-ancestors 'none'"):  # fmt: skip
                assert directive in policy
            assert "unsafe" not in policy and not re.search(
                r"<script(?! src=)|<style|\sstyle=|\son\w+=", answer.text
            )

    def test_takes_no_form_of_another_site_or_session(self, shared, page):
        if page.method == "GET":
            return
        browser, other = shared.browser(ADMIN), shared.browser(ADMIN)
        for refused in (
            browser.post(path_of(page), headers={"Origin": "https://evil.example"}),
            browser.post(path_of(page), headers={"Origin": "null"}),
            browser.http.post(path_of(page), data={"token": browser.token}),
            browser.post(path_of(page), token=""),
            browser.post(path_of(page), token=other.token),
        ):
            assert refused.status_code == 403
        assert (
            browser.get("/console").status_code == 200
            and shared.admin.http.get("/targets/jane-doe").is_success
        )


def test_inference_keys_and_wrong_ones_do_not_log_in(desk):
    inference = desk.admin.authenticator.create("inference", None, None)[1]
    for key, status in ((inference, 403), ("lk_wrong", 401), ("", 401), ("schlüssel", 401)):
        answer = desk.browser().post("/console/login", key=key)
        assert answer.status_code == status and COOKIE not in answer.cookies


def test_login_wants_its_own_page(desk):
    answer = desk.browser().post("/console/login", key=ADMIN, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403 and COOKIE not in answer.cookies


def test_the_cookie_is_for_the_console_alone(desk):
    cookie = desk.browser().post("/console/login", key=ADMIN).headers["set-cookie"]
    assert "HttpOnly" in cookie and "Path=/console" in cookie and "SameSite=strict" in cookie
    assert "Secure" not in cookie and "Max-Age" not in cookie
    secure = desk.browser(base_url="https://lethe").post(
        "/console/login", key=ADMIN, headers={"Origin": "https://lethe"}
    )
    assert "Secure" in secure.headers["set-cookie"]


def test_behind_a_proxy_the_configured_address_counts(tmp_path):
    with console(tmp_path, settings=ConsoleSettings(origin="https://lethe.example")) as desk:
        assert desk.browser().post("/console/login", key=ADMIN).status_code == 403
        answer = desk.browser().post("/console/login", key=ADMIN, headers={"Origin": "https://lethe.example"})
        assert answer.status_code == 303 and "Secure" in answer.headers["set-cookie"]


def test_a_session_ends_with_logout_and_its_id_is_of_no_use(desk):
    browser = desk.browser(ADMIN)
    session_id = browser.http.cookies[COOKIE]
    assert browser.post("/console/logout").status_code == 303
    browser.http.cookies.set(COOKIE, session_id, path="/console")
    assert browser.get("/console").headers["location"] == "/console/login"


def test_a_session_ends_with_its_key(desk):
    key, token = desk.admin.authenticator.create("admin", None, None)
    browser = desk.browser(token)
    desk.admin.authenticator.revoke(key.id)
    answer = browser.get("/console/targets")
    assert answer.status_code == 401 and "revoked" in answer.text and "<nav" not in answer.text
    assert browser.get("/console/targets").status_code == 303


def test_a_session_ends_when_its_key_expires(desk):
    now = desk.admin.authenticator._clock
    _, token = desk.admin.authenticator.create("auditor", None, now() + 60)
    browser = desk.browser(token)
    desk.admin.authenticator._clock = lambda: now() + 61
    assert browser.get("/console").status_code == 401


def test_an_idle_session_ends_and_a_page_that_renews_itself_is_idle(desk):
    browser = desk.browser(ADMIN)
    for _ in range(3):
        desk.clock.now += 29 * 60
        assert browser.get("/console").status_code == 200
    desk.clock.now += 20 * 60
    assert browser.get("/console/decisions", headers={"x-lethe-live": "1"}).status_code == 200
    desk.clock.now += 11 * 60
    assert browser.get("/console").status_code == 303


def test_a_session_ends_after_twelve_hours_in_any_case(desk):
    browser = desk.browser(ADMIN)
    for _ in range(36):
        desk.clock.now += 20 * 60 - 1
        assert browser.get("/console").status_code == 200
    desk.clock.now += 60
    assert browser.get("/console").status_code == 303


def test_sessions_are_bounded_and_kept_by_digest():
    sessions = Sessions(60, 600, most=3, clock=Clock())
    ids = [sessions.begin("key") for _ in range(3)]
    sessions.find(ids[0])
    ids.append(sessions.begin("key"))
    assert [sessions.find(i) is not None for i in ids] == [True, False, True, True]
    assert not any(i in repr(vars(sessions)) for i in ids)


def test_form_tokens_are_of_one_session():
    assert is_form_token("a", form_token("a"))
    assert (
        not is_form_token("b", form_token("a")) and not is_form_token("a", "") and not is_form_token("a", "é")
    )


def test_logging_in_may_fail_five_times_a_minute(desk):
    browser = desk.browser()
    for _ in range(5):
        assert browser.post("/console/login", key="wrong").status_code == 401
    held = browser.post("/console/login", key=ADMIN)
    assert (
        held.status_code == 429 and 0 < int(held.headers["retry-after"]) <= 60 and COOKIE not in held.cookies
    )
    desk.clock.now += 61
    assert browser.post("/console/login", key=ADMIN).status_code == 303


def test_attempts_are_counted_by_client_and_bounded():
    attempts = Attempts(1, 60, clients=2, clock=Clock())
    for client in "abc":
        attempts.failed(client)
    assert [attempts.wait(client) > 0 for client in "abcd"] == [False, True, True, False]


@pytest.mark.parametrize(
    ("host", "client"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::7", "2001:db8:1:2::/64"), ("socket", "socket")],
)
def test_a_client_is_an_address_or_the_network_of_one_customer(host, client):
    from starlette.requests import Request

    assert client_of(Request({"type": "http", "client": (host, 1)})) == client


def test_assets_need_no_session_and_are_not_sent_twice(desk):
    for name in ("console.css", "console.js", "icon.svg"):
        answer = desk.browser().get(f"/console/static/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        again = desk.browser().get(
            f"/console/static/{name}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
    assert desk.browser().get("/console/static/../desk.py").status_code == 404
    assert desk.browser().get("/console/static/desk.py").status_code == 404


def test_no_asset_or_page_names_another_host():
    from server.console.desk import FOLDER

    for path in (*(FOLDER / "templates").iterdir(), *(FOLDER / "static").iterdir()):
        text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(https?:)?//[a-z0-9]", text.replace("// ", "")), path.name


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out_from_their_grounds(scheme):
    """WCAG 2 AA: 4.5 to 1."""
    from guard.pages import contrast
    from server.console.desk import FOLDER

    css = (FOLDER / "static" / "console.css").read_text()
    block = css.split(":root {")[1 + scheme].split("}")[0]
    colours = {n: tuple(bytes.fromhex(v)) for n, v in re.findall(r"--([a-z-]+): #([0-9a-f]{6})", block)}
    pairs = [(ink, ground) for ink in ("ink", "soft", "deep", "bad") for ground in ("ground", "paper")]
    pairs += [("ink", "wash"), ("deep", "wash"), ("deep-ink", "deep"), ("paper", "bad"), ("mark-ink", "mark")]
    pairs += [(name, f"{name}-back") for name in ("good", "warn", "bad")] + [("ink", "bad-back")]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


def test_the_menu_shows_what_the_role_may_open(desk):
    shown = {
        role: set(re.findall(r'<a href="/console/(\w+)"', desk.as_(role).get("/console").text))
        for role in ROLES
    }
    assert shown["admin"] == {
        "targets",
        "playground",
        "decisions",
        "calibration",
        "jobs",
        "reports",
        "keys",
        "audit",
    }
    assert shown["auditor"] == shown["admin"] - {"keys"}
    assert shown["operator"] == shown["auditor"] - {"playground", "decisions", "audit"}


def test_those_who_are_not_let_in_are_counted(desk):
    desk.browser().post("/console/login", key="wrong")
    desk.as_("operator").get("/console/keys")
    assert [error.status for error in desk.admin.denied] == [401, 403]


def test_whoever_may_not_see_the_status_may_not_come_in():
    assert {role for role, may in PERMISSIONS.items() if ENTRY in may} == set(ROLES)
    assert {role for role, may in PERMISSIONS.items() if Permission.UNGUARDED in may} == {"admin"}


def test_what_goes_wrong_inside_is_not_told(desk, monkeypatch, caplog):
    browser = desk.browser(ADMIN)
    monkeypatch.setattr(desk.admin.register, "views", lambda **_: 1 / 0)
    answer = browser.get("/console/targets")
    assert answer.status_code == 500 and "division" not in answer.text and "its log says why" in answer.text
    assert "division" in caplog.text
