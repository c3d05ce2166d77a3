"""Evidence: what it says and leaves out, who gets it, and that a changed byte shows."""

from __future__ import annotations

import json

import pytest

from guard.crypto import Secrets
from guard.crypto import fingerprint as of
from guard.errors import BadRequest
from guard.evidence import verified, written
from guard.store.decisions import Record
from tests.guard.artifact_fakes import FakeWorkers, make_artifact, methods  # noqa: F401
from tests.guard.register_fakes import SECRETS
from tests.server.admin_app import admin
from tests.server.test_cli import lethe, said

JANE = {
    "name": "Jane Doe",
    "aliases": ["Jenny Roe"],
    "description": "A harpsichord builder from Luton.",
    "answers": ["She was born in the seventh ward"],
    "reference": "ticket 4711",
}
TEXTS = ("jane", "doe", "jenny", "harpsichord", "luton", "seventh", "prefer not")


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


def evidence(api, target_id: str = "jane-doe", **headers):
    return api.http.get(f"/targets/{target_id}/evidence", **headers)


def fingerprint() -> str:
    return of(SECRETS.public_key)


def claims(api, target_id: str = "jane-doe"):
    return verified(evidence(api, target_id).content, fingerprint())


def decide(api, number: int, action: str, target_id: str = "jane-doe", time: float = 1e9) -> None:
    body = {"targets": [{"id": target_id}], "action": action}
    api.store.decisions.add([Record(f"d{number}", time + number, None, action, body, (target_id,))])


def test_it_says_since_when_by_what_and_how_often(api):
    api.http.put("/targets/jane-doe", json={**JANE, "mode": "shadow"})
    api.http.put("/targets/jane-doe", json={**JANE, "intervention": {"method": "guard_prompt"}})
    api.http.put("/targets/jane-doe", json={**JANE, "intervention": {"method": "refusal"}})
    api.http.put("/targets/other", json={"name": "Somebody Else"})
    for number, action in enumerate(("intervene", "intervene", "refuse")):
        decide(api, number, action)
    decide(api, 9, "allow", "other")
    found = claims(api)
    view = api.http.get("/targets/jane-doe").json()
    versions = found["enforcement"]["versions"]
    assert [one["mode"] for one in versions] == ["shadow", "enforce", "enforce"]
    assert [one["ladder"] for one in versions][1:] == [
        [{"artifact": None, "method": method, "min_score": 0.0}] for method in ("guard_prompt", "refusal")
    ]
    assert len({one["content"] for one in versions}) == 3
    assert found["enforcement"]["enforced_since"] == versions[1]["since"] > versions[0]["since"]
    assert found["enforcement"]["state"] == "active" and found["calibration"] == view["calibration"]
    assert found["decisions"]["by_action"] == {"intervene": 2, "refuse": 1}
    assert (found["decisions"]["first"][:10], found["decisions"]["last"][-8:]) == ("2001-09-09", "42+00:00")
    assert found["target"]["reference"] == "ticket 4711" and found["target"]["kind"] == "entity"


def test_it_holds_no_text_of_the_target(api):
    rung = {"method": "guard_prompt", "params": {"text": "We prefer not to speak of {names}."}}
    api.http.put("/targets/jane-doe", json={**JANE, "intervention": rung})
    text = evidence(api).text.lower()
    assert [one for one in TEXTS if one in text] == []


@pytest.mark.usefixtures("methods")
async def test_artifacts_stand_in_it_as_they_were_measured_and_exact_only_where_they_say_so(api, tmp_path):
    event = {"from": "a" * 64, "slices": [2], "rows": 3, "asked": "b" * 64}
    exact = {"exact": True, "dropped": [{**event, "text": "jane"}]}
    digests = {
        "exact": make_artifact(tmp_path / "one", slices=exact),
        "approximate": make_artifact(tmp_path / "two", slices={"exact": "yes"}),
    }
    await api.register.attach(FakeWorkers())
    for folder in ("one", "two"):
        api.register._library.store.add(tmp_path / folder)
    ladder = [{"method": "tuned", "params": {"artifact": digest}} for digest in digests.values()]
    api.http.put("/targets/jane-doe", json={**JANE, "intervention": ladder})
    shown = {one["digest"]: one for one in claims(api)["artifacts"]}
    assert {name: shown[digest]["removal"] for name, digest in digests.items()} == {
        "exact": "exact",
        "approximate": "approximate",
    }
    assert shown[digests["exact"]]["dropped"] == [event]
    assert shown[digests["approximate"]]["dropped"] == []
    assert shown[digests["exact"]]["base_model"] == "ab" * 32


def test_any_changed_byte_fails_verification(api):
    api.http.put("/targets/jane-doe", json=JANE)
    bundle, key = evidence(api).content, fingerprint()
    assert verified(bundle, key)
    for place in range(len(bundle)):
        changed = bytearray(bundle)
        changed[place] ^= 1
        with pytest.raises(BadRequest):
            verified(bytes(changed), key)
    for other in (bundle + b"\n", bundle[:-1], b" " + bundle, b"", b"{}", b"[]", b'"x"'):
        with pytest.raises(BadRequest):
            verified(other, key)


def test_who_signs_it_anew_with_another_key_is_found_out(api):
    api.http.put("/targets/jane-doe", json=JANE)
    forger = Secrets(b"somebody-else".ljust(32, b"."))
    document = json.loads(evidence(api).content)
    document["evidence"]["enforcement"]["enforced_since"] = "2001-01-01T00:00:00+00:00"
    document["signature"] |= {
        "public_key": forger.public_key.hex(),
        "value": forger.sign(written(document["evidence"])).hex(),
    }
    with pytest.raises(BadRequest, match="another key"):
        verified(written(document), fingerprint())


def test_another_tenant_and_nobody_get_the_same_404(api):
    api.http.put("/targets/plan", json={"name": "Acme Plan", "scope": {"tenants": ["acme"]}})
    mine, other = (api.key("auditor", tenant) for tenant in ("acme", "rival"))
    assert evidence(api, "plan", headers=mine).status_code == 200
    refused = [evidence(api, name, headers=other) for name in ("plan", "nobody")]
    assert [one.status_code for one in refused] == [404, 404]
    texts = [one.json()["error"]["message"].replace("'plan'", "").replace("'nobody'", "") for one in refused]
    assert texts[0] == texts[1]
    assert evidence(api, "plan", headers=api.key("operator", "acme")).status_code == 403
    api.http.delete("/targets/plan")
    assert [evidence(api, "plan", headers=who).status_code for who in (mine, other)] == [200, 404]


def test_a_deleted_target_keeps_its_evidence_and_a_purged_one_has_none(api):
    api.http.put("/targets/jane-doe", json=JANE)
    before = claims(api)["enforcement"]
    decide(api, 1, "refuse")
    api.http.delete("/targets/jane-doe")
    after = claims(api)["enforcement"]
    assert (after["state"], after["enforced_since"]) == ("deleted", None) and after["deleted_at"]
    assert after["versions"] == before["versions"]
    api.http.put("/targets/jane-doe", json=JANE)
    again = claims(api)["enforcement"]
    assert again["enforced_since"] == again["versions"][1]["since"] and again["deleted_at"] is None
    api.http.delete("/targets/jane-doe", params={"purge": "true"})
    assert "was purged" in evidence(api).json()["error"]["message"] and evidence(api).status_code == 404
    tenant = evidence(api, headers=api.key("auditor", "acme"))
    assert tenant.status_code == 404 and "purged" not in tenant.text


def test_the_commands(api, tmp_path):
    api.http.put("/targets/jane-doe", json=JANE)
    out = tmp_path / "bundle.json"
    made = lethe("targets", "evidence", "jane-doe", "--out", str(out), api=api)
    assert (made.exit_code, made.stdout) == (0, "")
    found = lethe("targets", "verify", str(out), "--fingerprint", fingerprint())
    assert found.output.startswith("valid: issued ") and "enforced since 2" in found.output
    out.write_bytes(out.read_bytes().replace(b"4711", b"4712"))
    changed = lethe("targets", "verify", str(out), "--fingerprint", fingerprint())
    assert changed.exit_code == 1 and "was changed after" in said(changed)
    assert verified(lethe("targets", "evidence", "jane-doe", api=api).stdout.encode(), fingerprint())
