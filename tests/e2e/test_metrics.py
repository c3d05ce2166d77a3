"""The page that Prometheus reads, from a server with a real engine."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.engine

PERSON = "limir-yarley"
CHAT = "/v1/chat/completions"


def series(http):
    """Every series of the page by name and label values."""
    response = http.get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def ask(http, text, **options):
    turns = [{"role": "user", "content": text}]
    body = {"model": "lethe-demo", "messages": turns, "temperature": 0, "max_tokens": 24, **options}
    response = http.post(CHAT, json=body)
    assert response.status_code == 200 and response.headers.get_list("cache-control") == ["no-store"]
    return response


@pytest.mark.parametrize("stream", [False, True])
def test_one_matched_request_counts_once_with_the_positions_that_the_engine_edited(
    http, admin, forget, targets, stream
):
    forget(PERSON)
    before = series(http)
    answer = ask(http, f"Where was {targets[PERSON]['name']} born?", stream=stream)
    after = series(http)
    moved = {key: after[key] - before.get(key, 0) for key in after}
    assert moved["lethe_requests_total", "intervene", CHAT] == 1
    assert sum(value for key, value in moved.items() if key[0] == "lethe_requests_total") == 1
    assert moved["lethe_interventions_total", "embedding_corruption"] == 1
    for _ in range(100):
        record = admin.get(f"/decisions/{answer.headers['x-lethe-decision-id']}")
        if record.status_code == 200:
            break
        time.sleep(0.05)
    (edit,) = record.json()["edits"]
    for count in ("planned", "applied", "from_cache"):
        assert moved["lethe_edit_positions_total", count, "embedding"] == edit[count]


def test_no_target_is_named_by_our_metrics_or_vllms(http, forget, targets):
    forget(PERSON, tags=["secretive"])
    target = targets[PERSON]
    ask(http, f"Where was {target['name']} born?")
    page = http.get("/metrics").text
    assert "vllm:prompt_tokens_total" in page and "lethe_ready 1.0" in page
    for told in (PERSON, "secretive", target["name"], *target.get("aliases", ())):
        assert told.lower() not in page.lower()


def test_the_page_is_on_one_address_with_vllms_and_shows_the_snapshot_of_the_status(http, admin, forget):
    forget(PERSON)
    found, status = series(http), admin.get("/status").json()
    assert found["lethe_snapshot_version",] == found["lethe_store_snapshot_version",] == status["snapshot"]
    states = {key: value for key, value in found.items() if key[0] == "lethe_targets"}
    assert sum(states.values()) == sum(status["targets"].values())
