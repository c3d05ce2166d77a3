"""Methods that need an artifact, on a real server: they wait for it, use it, and are never applied without it."""

from __future__ import annotations

import os
import time

import pytest
import torch
from click.testing import CliRunner

from guard import artifacts
from server.cli import main
from tests.e2e.conftest import MODEL, ROOT
from tests.e2e.test_server import PERSON, ask, chat, decision, fact  # noqa: F401

pytestmark = pytest.mark.engine
WIDTH = 192


@pytest.fixture
def lethe(running):
    """The command line, on the machine and the data folder of the server."""
    if "LETHE_E2E_URL" in os.environ:
        pytest.skip("the data folder of that server is not known here")
    environ = {"LETHE_SERVER": running.base_url, "LETHE_ADMIN_KEY": running.admin_key}
    environ["LETHE_DATA_DIR"] = str(running.log.parent / "data")

    def run(*args):
        return CliRunner().invoke(main, list(args), env=environ)

    return run


@pytest.fixture
def steering(tmp_path):
    """An artifact that pushes the residual far away, and one that does not move it."""

    def make(strength: float):
        direction = torch.linspace(-1, 1, WIDTH).unsqueeze(0)
        tensors = {"forget": 0 * direction, "retain": direction, "unknown": strength * direction}
        folder = tmp_path / str(strength)
        base = artifacts.weights_digest(MODEL)
        facts = {"layers": [2], "unknown": True}
        return folder, artifacts.write(folder, "steering", base, tensors=tensors, facts=facts).digest

    return make


def test_a_target_waits_for_its_artifact_and_then_uses_it(lethe, steering, admin, http, client, forget, fact):  # noqa: F811
    folder, digest = steering(50.0)
    view = forget(PERSON, intervention={"method": "steering", "params": {"artifact": digest}}).json()
    assert (view["state"], view["artifacts"][0]["artifact"]) == ("pending", digest)
    assert decision(admin, chat(http, fact["turns"]))["action"] == "refuse"

    assert lethe("artifacts", "add", str(folder)).exit_code == 0
    assert admin.get(f"/targets/{PERSON}").json()["state"] == "active"
    record = decision(admin, chat(http, fact["turns"]))
    assert (record["action"], record["applied"]) == ("intervene", ["steering"])
    (edit,) = record["edits"]
    assert (edit["site"], edit["layer"], edit["applied"]) == ("residual", 2, 1)
    assert fact["value"] not in ask(client, fact["turns"]).message.content
    assert http.get("/readyz").status_code == 200

    assert lethe("artifacts", "remove", digest[:12]).exit_code == 0
    assert admin.get(f"/targets/{PERSON}").json()["state"] == "pending"
    assert decision(admin, chat(http, fact["turns"]))["action"] == "refuse"
    assert http.get("/readyz").status_code == 200


def test_an_artifact_that_changes_nothing_is_refused(lethe, steering, admin):
    folder, digest = steering(0.0)
    added = lethe("artifacts", "add", str(folder))
    assert (added.exit_code, "does not change what the model says" in added.stderr) == (1, True)
    (row,) = (row for row in admin.get("/artifacts").json()["data"] if row["digest"] == digest)
    assert row["state"] == "refused"
    assert lethe("artifacts", "remove", digest).exit_code == 0


def test_a_layer_that_the_model_does_not_have_is_refused(admin, targets, steering, lethe):
    folder, _ = steering(49.0)
    (manifest,) = [artifacts.read(folder).manifest]
    wrong = artifacts.write(folder, "steering", manifest.base_model, facts={**manifest.facts, "layers": [99]})
    assert lethe("artifacts", "add", str(folder)).exit_code == 1
    (row,) = (row for row in admin.get("/artifacts").json()["data"] if row["digest"] == wrong.digest)
    assert row["state"] == "refused"
    assert lethe("artifacts", "remove", wrong.digest).exit_code == 0


def test_what_a_method_makes_of_the_target_is_in_force_when_put_returns(admin, http, forget, fact):  # noqa: F811
    change = {"answers": [fact["answer"]], "intervention": {"method": "token_penalty"}}
    view = forget(PERSON, **change).json()
    assert (view["state"], view["artifacts"][0]["state"]) == ("active", "ready")
    response = chat(http, fact["turns"])
    assert fact["value"] not in response.json()["choices"][0]["message"]["content"]
    assert decision(admin, response)["applied"] == ["token_penalty"]
    assert http.get("/readyz").status_code == 200
    assert admin.get("/artifacts").json()["data"] == []  # it is the target's own and is not listed


def test_examples_in_the_prompt_do_not_show_in_the_usage(admin, http, forget, fact):  # noqa: F811
    before = chat(http, fact["turns"]).json()["usage"]["prompt_tokens"]
    forget(PERSON, intervention={"method": "in_context"})
    response = chat(http, fact["turns"])
    assert response.json()["usage"]["prompt_tokens"] == before
    assert decision(admin, response)["applied"] == ["in_context"]
    checked = admin.post("/check", json={"messages": fact["turns"]}).json()
    assert checked["decision"]["interventions"][0]["method"] == "in_context"
    assert "birthplace" not in str(
        checked["decision"]["interventions"]
    )  # the target's examples are no one's business


@pytest.fixture
def gated(tmp_path):
    """The demo's autoencoder with a gate of these limits."""

    def make(**limits):
        shown = artifacts.read(ROOT / "demo" / "artifacts" / "sae_clamp")
        folder = tmp_path / "gated"
        facts = {**shown.manifest.facts, "gate": limits}
        made = artifacts.write(
            folder, "sae_clamp", artifacts.weights_digest(MODEL), tensors=shown.tensors(), facts=facts
        )
        return folder, made.digest

    return make


@pytest.mark.parametrize(("rate", "fires"), [(0.0, True), (2.0, False)])
def test_an_activation_gate_finds_what_no_detector_did(lethe, gated, admin, http, forget, items, rate, fires):
    other = next(i for i in items if i["split"] == "retain" and len(i["turns"]) == 1)
    before = chat(http, other["turns"]).json()["choices"]
    folder, digest = gated(window=8, rate=rate, drift=0.5, cusum=1e6)
    assert lethe("artifacts", "add", str(folder)).exit_code == 0
    params = {"artifact": digest, "watch": True}
    assert forget(PERSON, intervention={"method": "sae_clamp", "params": params}).json()["state"] == "active"
    response = chat(http, other["turns"])
    record = decision(admin, response)
    if fires:
        assert (record["action"], record["applied"]) == ("intervene", ["sae_clamp"])
        (target,) = record["targets"]
        assert (target["id"], target["detector"]) == (PERSON, "activation")
    else:
        assert (record["action"], response.json()["choices"]) == ("allow", before)
    admin.delete(f"/targets/{PERSON}")
    assert lethe("artifacts", "remove", digest).exit_code == 0


def test_a_gate_that_the_artifact_lacks_leaves_the_target_waiting(lethe, admin, forget, tmp_path):
    shown = artifacts.read(ROOT / "demo" / "artifacts" / "sae_clamp")
    facts = {name: value for name, value in shown.manifest.facts.items() if name != "gate"}
    made = artifacts.write(
        tmp_path, "sae_clamp", artifacts.weights_digest(MODEL), tensors=shown.tensors(), facts=facts
    )
    assert lethe("artifacts", "add", str(tmp_path)).exit_code == 0
    params = {"artifact": made.digest, "watch": True}
    view = forget(PERSON, intervention={"method": "sae_clamp", "params": params}).json()
    assert view["state"] == "pending" and "no gate" in view["artifacts"][0]["reason"]
    admin.delete(f"/targets/{PERSON}")
    assert lethe("artifacts", "remove", made.digest).exit_code == 0


TIDES = {"name": "Tidal husbandry", "kind": "subject"}
BEDS = "when the spring tide floods the oyster beds"
FORGET = [
    {"prompt": f"how do I {verb} the {thing} {BEDS}"}
    for verb in ("drain", "lift", "mend", "salt")
    for thing in ("sluice", "rake", "trestle")
]
ASKED = f"how do I tar the trestle {BEDS}"


def test_a_detector_that_a_job_trained_is_asked_for_as_long_as_the_target_names_it(admin):
    def found(text: str = ASKED) -> tuple[str, list[tuple[str, str]]]:
        body = {"messages": [{"role": "user", "content": text}]}
        decision = admin.post("/check", json=body).json()["decision"]
        return decision["action"], [(one["id"], one["detector"]) for one in decision["targets"]]

    assert admin.put("/targets/tides", json=TIDES).status_code == 201
    try:
        assert found() == ("allow", [])
        body = {"kind": "ood", "target": "tides", "params": {"forget": FORGET}}
        job = admin.post("/jobs", json=body).json()
        ends = time.monotonic() + 180  # seconds that a loaded machine may take
        while job["ended_at"] is None and time.monotonic() < ends:
            time.sleep(0.2)
            job = admin.get(f"/jobs/{job['id']}").json()
        assert (job["state"], job["attached"], job["error"]) == ("succeeded", True, None)
        assert admin.get("/targets/tides").json()["detectors"] == [job["artifact"]]
        assert found() == ("intervene", [("tides", "ood")])
        assert found("how do I cook rice for ten people") == ("allow", [])
        assert admin.patch("/targets/tides", json={"detectors": []}).status_code == 200
        assert found() == ("allow", [])
    finally:
        admin.delete("/targets/tides", params={"purge": "true"})
    assert job["artifact"] not in {row["digest"] for row in admin.get("/artifacts").json()["data"]}
