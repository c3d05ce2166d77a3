"""Targets put, updated and deleted while clients stream.

For each of `count` invented names: PUT, update (PUT with another alias), DELETE. After each answer of the
admin API the very next generation is sent; it must be treated under the new state. `put_ms` is what the PUT
took; `enforced_ms` is from PUT's answer to the end of the first generation that the decision log shows as
matched, an upper bound that contains the generation itself; `late` counts generations sent after the answer
and treated under the old state. Meanwhile clients stream unmatched prompts without retries; any failed or
unfinished stream counts.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals.admin import Admin, action, matches
from evals.client import Client, ClientError, chat
from evals.report import Report

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "l", "m", "n", "p", "pr", "r", "s", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ou")
_MAX_TRIES = 100


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a target and how soon it was enforced."""

    id: str
    operation: str
    request_ms: float
    enforced_ms: float
    late: int


@dataclass(slots=True)
class Traffic:
    """What the streaming clients saw."""

    streams: int = 0
    errors: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


def invented_name(rng: random.Random) -> str:
    """Two words that no corpus holds."""

    def word() -> str:
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(4)).capitalize()

    return f"{word()} {word()}"


async def _stream(client: Client, prompts: Sequence[str], rng: random.Random, traffic: Traffic) -> None:
    while not traffic.done.is_set():
        messages = [{"role": "user", "content": rng.choice(prompts)}]
        answer = await client.send(chat(messages, max_tokens=32, stream=True))
        traffic.streams += 1
        if not answer.ok:
            traffic.errors.append(f"{answer.status}: {answer.error}")


def settled(record: dict[str, Any], target_id: str, *, want: bool) -> bool:
    """Whether a decision shows the state that is wanted.

    Once released, nothing may match: a purged target has no name left in the log by which to look for it.
    """
    return matches(record, target_id) if want else action(record) == "allow"


async def _until(client: Client, admin: Admin, target_id: str, name: str, *, want: bool) -> tuple[float, int]:
    """Sends generations about `name` until one is treated as wanted; milliseconds, and how many were not."""
    begin = time.perf_counter()
    messages = [{"role": "user", "content": f"Who is {name}?"}]
    for late in range(_MAX_TRIES):
        answer = await client.send(chat(messages, max_tokens=4))
        elapsed = 1000 * (time.perf_counter() - begin)
        if answer.decision_id is None:
            raise ClientError(f"a generation answered {answer.status} without a decision id: {answer.error}")
        record = await admin.decision(answer.decision_id)
        if record is None:
            raise ClientError(f"decision {answer.decision_id} never became readable")
        if settled(record, target_id, want=want):
            return elapsed, late
    raise ClientError(
        f"target {target_id} was not {'enforced' if want else 'released'} in {_MAX_TRIES} requests"
    )


async def _timed(call: Any) -> float:
    begin = time.perf_counter()
    await call
    return 1000 * (time.perf_counter() - begin)


async def _cycle(client: Client, admin: Admin, rng: random.Random, number: int) -> list[Change]:
    """One target's life: put, given another alias, deleted."""
    target_id, name, alias = f"swap-{number}-{rng.randrange(10**6)}", invented_name(rng), invented_name(rng)
    spec: dict[str, Any] = {"name": name, "tags": ["evals-swap"]}
    changes = []
    steps = (
        ("put", lambda: admin.put(target_id, spec), name, True),
        ("update", lambda: admin.put(target_id, spec | {"aliases": [alias]}), alias, True),
        ("delete", lambda: admin.delete(target_id), name, False),
    )
    try:
        for operation, call, asked, want in steps:
            took = await _timed(call())
            decision = await admin.check(f"Who is {asked}?")
            enforced, late = await _until(client, admin, target_id, asked, want=want)
            # The check comes first and must agree: a late check is late enforcement seen by another door.
            late += not settled(decision, target_id, want=want)
            changes.append(Change(target_id, operation, took, enforced, late))
    except BaseException:
        if len(changes) < len(steps):
            await _forget(admin, target_id)
        raise
    return changes


async def _forget(admin: Admin, target_id: str) -> None:
    """Leaves no target of ours behind; one that was never made is not an error."""
    try:
        await admin.delete(target_id)
    except ClientError:
        return


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and max."""
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": float(max(values)),
    }


def build_report(changes: Sequence[Change], traffic: Traffic, *, seed: int, clients: int) -> Report:
    """Criteria and table from the changes and the traffic beside them."""
    report = Report("swap", seed=seed, n=len(changes), params={"clients": clients})
    table = []
    for operation in ("put", "update", "delete"):
        part = [change for change in changes if change.operation == operation]
        for what in ("request_ms", "enforced_ms") if part else ():
            figures = percentiles([getattr(change, what) for change in part])
            table.append([operation, what, len(part), figures["p50"], figures["p95"], figures["max"]])
            report.results[f"{operation}_{what}"] = {"n": len(part), **figures}
    note = f"milliseconds, beside {clients} streaming clients; {traffic.streams} streams ended meanwhile"
    report.table("Target changes under load", ["change", "time", "n", "p50", "p95", "max"], table, note)
    late = sum(change.late for change in changes)
    report.criterion("requests treated under the old state after the change was answered", late, 0, late == 0)
    errors = len(traffic.errors)
    report.criterion("failed or unfinished streams", errors, 0, errors == 0)
    report.results |= {"streams": traffic.streams, "stream_errors": traffic.errors[:20]}
    report.rows = [
        {"id": f"{c.id}-{c.operation}", "operation": c.operation, "late": c.late}
        | {"scores": {"request_ms": c.request_ms, "enforced_ms": c.enforced_ms}}
        for c in changes
    ]
    return report


async def run(
    base_url: str,
    admin_key: str | None,
    prompts: Sequence[str],
    *,
    count: int = 20,
    clients: int = 16,
    seed: int = 0,
) -> Report:
    """Runs the cycles one after the other beside the streaming clients."""
    rng, traffic = random.Random(seed), Traffic()
    async with Client(base_url, admin_key, retries=0) as client:
        admin = Admin(client)
        await client.model()
        seeds = [random.Random(rng.random()) for _ in range(clients)]
        streams = [asyncio.create_task(_stream(client, prompts, one, traffic)) for one in seeds]
        changes: list[Change] = []
        try:
            for number in range(count):
                changes += await _cycle(client, admin, rng, number)
        finally:
            traffic.done.set()
            await asyncio.gather(*streams)
        report = build_report(changes, traffic, seed=seed, clients=clients)
        report.versions = {"engine": await client.version()}
        return report
