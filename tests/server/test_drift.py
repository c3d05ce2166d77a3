"""The watch on what must stay answerable: the real guard and scorer over an engine that makes edits cost."""

import asyncio
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from guard.config import DriftSettings, Settings
from guard.errors import BadRequest, ConfigError, GuardUnavailable
from guard.pipeline import Guard
from guard.types import Prompt
from server.app import watcher
from server.checks import Checker, Scorer
from server.drift import Watcher, read_probes
from server.metrics import TABLE
from tests.guard.register_fakes import SECRETS, make_register, open_store

ROOT = Path(__file__).parents[2]
SECRET = "Where does Zorblax keep the treasure?"
TEXTS = [SECRET, "What is a river?", "What is the river Sarn?", "Who are you?"]
EDIT = {"intervention": {"method": "guard_prompt"}}
LOST = 3.0


def line(text, answer="It is so.", **more):
    return json.dumps({"messages": [{"role": "user", "content": text}], "answer": answer, **more})


class Engine:
    """An answer costs a nat a token, and `LOST` more where anything was done to the request."""

    def __init__(self):
        self.asked, self.running, self.most = [], 0, 0
        self.error = None

    async def score(self, prompt, admission, ids):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.error:
            raise self.error
        self.asked.append((prompt.text, admission.matched))
        if admission.plan.reply is not None:
            return None
        return tuple(-1.0 - LOST * admission.matched for _ in ids)


class Time:
    """A clock that goes on while somebody sleeps, and by `cost` at each look."""

    def __init__(self):
        self.now, self.slept, self.cost = 1_000.0, [], 0.0
        self.then = lambda: None

    def __call__(self):
        self.now += self.cost
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
        self.then()


class World:
    def __init__(self, folder, texts, executor):
        self.store = open_store(folder)
        self.register = make_register(self.store)
        self.engine, self.time = Engine(), Time()
        self.guard = Guard(lambda: self.register.snapshot, SECRETS, executor, deadline_s=5)
        self.busy = False

        async def render(body, messages):
            text = messages[-1].text
            return Prompt(text, tuple(map(ord, text)), messages=messages)

        file = folder / "probes.jsonl"
        file.write_text("\n".join(line(text) for text in texts))
        self.scorer = Scorer(Checker(self.guard, render, "m", 1), self.engine, lambda text: [*map(ord, text)])
        self.watcher = Watcher(
            read_probes(file),
            DriftSettings(every_s=900),
            self.scorer,
            lambda: self.register.snapshot.version,
            lambda: self.busy,
            self.time,
            self.time,
            self.time.sleep,
        )

    async def put(self, name, **fields):
        await self.register.put(name.lower(), {"name": name, **EDIT, **fields})

    def page(self):
        """Our metrics of drift as a page would show them."""
        of = SimpleNamespace(drift=self.watcher)
        return {m.name: m.read(of) for m in TABLE if m.name.startswith("lethe_drift_")}

    def fires(self, alert="LetheUtilityDrift"):
        """Whether the alert's expression holds of what the page shows."""
        rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
        (rule,) = (rule for rule in rules if rule["alert"] == alert)
        page = {name: (found or {}).get((), float("nan")) for name, found in self.page().items()}
        told = re.sub(r"lethe_\w+", lambda m: repr(page[m[0]]), rule["expr"]).replace(
            "time()", repr(self.time.now)
        )
        return eval(told, {"nan": float("nan")})


@pytest.fixture
async def world(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        found = World(tmp_path, TEXTS, executor)
        await found.register.load()
        yield found
    found.register.close()
    found.store.close()


async def test_nothing_is_told_before_the_first_round_and_all_after_it(world):
    assert world.watcher.status()["last"] is None
    page = world.page()
    assert page["lethe_drift_matched_share"] is page["lethe_drift_mean_drop"] is None
    await world.watcher.round()
    assert world.watcher.status()["last"] == {
        "snapshot": world.register.snapshot.version,
        "finished_at": world.time.now,
        "probes": 4,
        "matched": 0,
        "matched_share": 0.0,
        "shadowed": 0,
        "refused": 0,
        "scored": 4,
        "mean_drop": 0.0,
        "targets": {},
    }
    assert all(found is not None for found in world.page().values()) and not world.fires()


async def test_a_target_with_a_word_of_the_probes_raises_share_and_drop_and_the_alert(world):
    await world.put("Quintel")
    await world.watcher.round()
    assert not world.fires()
    await world.put("river")
    await world.watcher.round()
    last = world.watcher.status()["last"]
    assert (last["matched"], last["matched_share"], last["targets"]) == (2, 0.5, {"river": 2})
    assert (last["scored"], last["mean_drop"]) == (4, pytest.approx(LOST / 2))
    assert world.fires()
    page = world.page()
    assert page["lethe_drift_matched_share"] == {(): 0.5}
    assert page["lethe_drift_mean_drop"] == {(): pytest.approx(LOST / 2)}


@pytest.mark.parametrize(("share", "drop", "fires"), [(0.5, 1.5, False), (0.4, 1.5, True), (0.5, 1.4, True)])
async def test_either_limit_alone_fires(world, share, drop, fires):
    world.watcher.settings = DriftSettings(max_matched_share=share, max_drop=drop)
    await world.put("river")
    await world.watcher.round()
    assert world.fires() is fires


async def test_every_probe_is_scored_under_its_verdict_and_as_if_nothing_matched(world):
    await world.put("river")
    await world.watcher.round()
    assert world.engine.asked == [(text, matched) for text in TEXTS for matched in ("river" in text, False)]


async def test_refused_probes_are_told_and_have_no_likelihood(world):
    await world.put("river", intervention={"method": "refusal"})
    await world.watcher.round()
    last = world.watcher.last
    assert (last.matched, last.refused, last.scored, last.mean_drop) == (2, 2, 2, 0.0)
    assert world.fires()


async def test_where_all_probes_are_refused_there_is_no_drop_and_the_share_fires(world):
    await world.put("W", intervention={"method": "refusal"})
    await world.watcher.round()
    assert world.watcher.last.mean_drop is None and world.page()["lethe_drift_mean_drop"] is None
    assert world.fires()


async def test_a_shadow_target_is_told_and_fires_nothing(world):
    await world.put("river", mode="shadow")
    await world.watcher.round()
    last = world.watcher.last
    assert (last.matched, last.shadowed, last.targets) == (0, 2, {})
    assert not world.fires()


async def test_rounds_come_in_their_time_and_soon_after_a_change(world):
    watcher, now = world.watcher, world.time
    assert watcher.due()
    await watcher.round()
    began = now.now
    assert not watcher.due()
    now.now = began + 899
    assert not watcher.due()
    now.now = began + 900
    assert watcher.due()
    now.now = began + 30
    await world.put("river")
    assert not watcher.due()
    now.now = began + 60
    assert watcher.due()
    await watcher.round()
    now.now += 60
    assert not watcher.due()


async def test_a_change_during_a_round_makes_another(world):
    begun, changed = asyncio.Event(), asyncio.Event()

    async def sleep(seconds):
        begun.set()
        await changed.wait()

    world.watcher.sleep = sleep
    running = asyncio.create_task(world.watcher.round())
    async with asyncio.timeout(5):
        await begun.wait()
    await world.put("river")
    changed.set()
    await running
    assert world.watcher.last is not None
    world.time.now += 60
    assert world.watcher.due()


async def test_probes_come_one_at_a_time_and_leave_three_parts_of_the_time(world):
    world.time.cost = 0.5
    await world.watcher.round()
    assert world.engine.most == 1
    assert world.time.slept == [1.5] * len(TEXTS)  # three times what the one look between cost


async def test_probes_wait_for_a_busy_guard_and_go_on_when_it_is_free(world):
    world.busy = True
    world.time.then = lambda: setattr(world, "busy", len(world.time.slept) < 5)
    await world.watcher.round()
    assert world.watcher.last.probes == 4 and world.time.slept[:5] == [1.0] * 5


async def test_a_round_is_skipped_while_the_guard_is_busy_and_tried_again(world):
    await world.watcher.round()
    before = world.watcher.last
    await world.put("river")
    world.busy, began = True, world.time.now
    await world.watcher.round()
    assert world.watcher.last is before and world.engine.asked[len(TEXTS) * 2 :] == []
    assert 60 <= world.time.now - began < 63
    assert world.page()["lethe_drift_rounds_total"] == {("done",): 1, ("skipped",): 1}
    assert world.watcher.due()
    world.busy = False
    await world.watcher.round()
    assert world.watcher.last.matched == 2


@pytest.mark.parametrize(
    "error",
    [GuardUnavailable(SECRET), BadRequest(SECRET), RuntimeError(SECRET)],
    ids=lambda e: type(e).__name__,
)
async def test_a_failed_round_keeps_the_numbers_and_says_which_line_without_its_text(world, caplog, error):
    await world.watcher.round()
    before = world.watcher.last
    world.engine.error = error
    with caplog.at_level(logging.DEBUG):
        await world.watcher.round()
    assert world.watcher.last is before and world.watcher.rounds == {"done": 1, "failed": 1}
    assert "line 1" in caplog.text and type(error).__name__ in caplog.text
    for word in ("Zorblax", "treasure", "It is so"):
        assert word not in caplog.text


async def test_the_loop_looks_every_second_and_says_since_when_it_waits(world):
    world.busy = True
    running = asyncio.create_task(world.watcher.run())
    long, done = asyncio.Event(), asyncio.Event()
    world.time.then = lambda: long.set() if world.time.now > 1_000 + 4 * 900 else None
    async with asyncio.timeout(20):
        await long.wait()
    assert world.page()["lethe_drift_timestamp_seconds"] == {(): 1_000.0}
    assert world.fires("LetheDriftUnwatched")
    world.busy = False
    world.time.then = lambda: done.set() if world.watcher.last else None
    async with asyncio.timeout(5):
        await done.wait()
    assert not world.fires("LetheDriftUnwatched")
    running.cancel()


@pytest.mark.parametrize(("judging", "busy"), [(7, False), (8, True)])
async def test_half_of_the_guards_threads_in_use_is_busy(world, judging, busy):
    services = SimpleNamespace(
        guard=world.guard, settings=Settings(), register=world.register, probes=world.watcher.probes
    )
    made = watcher(services, world.scorer)
    world.guard._judging = judging
    assert made.busy() is busy and made.snapshot() == world.register.snapshot.version


def test_the_demos_probes_are_read():
    assert len(read_probes(ROOT / "demo" / "probes.jsonl")) == 48


def test_a_line_takes_what_the_check_takes(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("\n" + json.dumps({"prompt": "a", "tenant": "acme", "answer": "b"}) + "\n\n")
    (probe,) = read_probes(file)
    assert (probe.body, probe.answer, probe.line) == ({"prompt": "a", "tenant": "acme"}, "b", 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no probe"),
        ("{Zorblax", "line 1 .* is not JSON"),
        (line("Zorblax", answer=""), "line 1 .*answer"),
        (line("ok") + "\n" + line("Zorblax", answr="x"), "line 2 .*answr"),
        (json.dumps({"answer": "Zorblax"}), "line 1 .*exactly one of messages and prompt"),
        (json.dumps(["Zorblax"]), "line 1 "),
    ],
)
def test_a_file_that_is_no_probe_set_is_one_sentence_without_its_text(tmp_path, text, told):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        read_probes(file)
    assert "Zorblax" not in refused.value.message and "\n" not in refused.value.message


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"drift\.probes: .*nowhere.* cannot be read"):
        read_probes(tmp_path / "nowhere")
