"""All suites on the demo: starts the guarded model, the same model bare, and the never-learned one, then
runs.

The three servers get the same engine arguments and the same served name, so that bodies can be compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from evals import serve
from evals.admin import Admin
from evals.client import Client
from evals.items import Item
from evals.opening import keep
from evals.report import Report
from evals.subjects import Endpoint, Subject
from evals.suites import attack_report, attacks, isolation, methods, parity, swap, targets
from guard.artifacts import ArtifactStore

SUITES = ("targets", "isolation", "parity", "swap")
MORE = ("methods", "curves", "attacks")  # only when asked for: they take as long as all others together
ARTIFACTS = Path("demo/artifacts")
ADAPTERS = {"LETHE_ADAPTERS_SLOTS": "4"}
PATIENT = {"LETHE_DETECTION_DEADLINE_MS": "60000"}
"""For attacks: long prompts are judged, however busy the machine is; one that is turned away tells nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start and how much to send."""

    full: str
    never: str
    target_file: Path | None
    logs: Path
    suites: Sequence[str] = SUITES
    options: Sequence[str] = ()
    seed: int = 0
    n: int = 500
    concurrency: int = 8
    sample: int | None = None
    others: int | None = None
    artifacts: Path = ARTIFACTS
    shown: str = "demo-methods"
    tag: str = "demo"
    journal: Path | None = None


def _bring_artifacts(artifacts: Path, data_dir: Path) -> None:
    """Put the artifacts where the guarded server will find them."""
    for folder in sorted(artifacts.glob("*/")):
        ArtifactStore(data_dir / "artifacts").add(folder)


async def _prepare(guarded: serve.Running, plan: Plan) -> None:
    if plan.target_file is None:
        return
    async with Client(guarded.base_url, guarded.admin_key) as client:
        made = await Admin(client).import_targets(plan.target_file.read_text(encoding="utf-8"))
    click.echo(f"imported targets: {made}", err=True)


def _methods(plan: Plan) -> methods.Plan:
    return methods.Plan(
        shown=plan.shown, tag=plan.tag, sample=plan.sample, others=plan.others, concurrency=plan.concurrency,
        seed=plan.seed,
    )  # fmt: skip


async def _attacks(items: Sequence[Item], clients: dict[str, Client], plan: Plan) -> Report:
    """On the registered targets as they are, and on every method by itself."""
    asked = attacks.Plan(attacks.chosen(), seed=plan.seed)
    if plan.sample is not None:
        asked = replace(
            asked, sample=plan.sample, benign=plan.others if plan.others is not None else asked.benign
        )
    admin = Admin(clients["guarded"])
    team = attacks.RedTeam(items, await admin.targets(plan.tag), asked)

    about = [plan.full, plan.never, plan.target_file.read_text(encoding="utf-8") if plan.target_file else ""]

    def subject(name: str, rung: dict[str, Any] | None = None) -> Subject:
        asked = Endpoint(clients[name], name, concurrency=plan.concurrency, lenient=True)
        return keep(asked, plan.journal, *about, name, rung)

    for name in ("unguarded", "never", "guarded"):
        await team.ask(name, subject(name))
    await attacks.on_methods(team, items, admin, _methods(plan), partial(subject, "guarded"))
    report = attack_report.build(team.found, asked)
    report.params = {
        "attacks": list(asked.attacks),
        "sample": asked.sample,
        "benign": asked.benign,
        "limit": asked.limit,
    }
    return report


async def _run(
    servers: dict[str, serve.Running], items: Sequence[Item], names: Sequence[str], plan: Plan
) -> list[Report]:
    """The chosen suites, one after the other. Swap comes last: it changes the register."""
    await _prepare(servers["guarded"], plan)
    reports: list[Report] = []
    key = servers["guarded"].admin_key
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(server.base_url, server.admin_key))
            for name, server in servers.items()
        }
        guarded, bare = clients["guarded"], clients["unguarded"]
        if "targets" in plan.suites:
            options = {"seed": plan.seed, "concurrency": plan.concurrency}
            reports.append(await targets.run(items, names, clients, **options))
        if "methods" in plan.suites:
            reports.append(await methods.run(items, names, clients, Admin(guarded), _methods(plan)))
        if "curves" in plan.suites:
            reports.append(await methods.run_curves(items, names, clients, Admin(guarded), _methods(plan)))
        if "attacks" in plan.suites:
            reports.append(await _attacks(items, clients, plan))
        if "isolation" in plan.suites:
            report = await isolation.run(items, guarded, bare, admin=Admin(guarded), n=plan.n, seed=plan.seed)
            reports.append(report)
        if "parity" in plan.suites:
            pair = parity.Server(guarded, key), parity.Server(bare, None)
            for server in pair:
                stack.push_async_callback(server.close)
            reports.append(await parity.run(parity.pick_prompts(items), *pair))
    if "swap" in plan.suites:
        prompts = parity.pick_prompts(items)
        reports.append(await swap.run(servers["guarded"].base_url, key, prompts, seed=plan.seed))
    return reports


async def run(items: Sequence[Item], names: Sequence[str], plan: Plan) -> list[Report]:
    """Starts the servers, runs, and takes everything down again."""
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lethe-evals-")))
        logs, env = plan.logs, serve.ENGINE_ENV
        if set(MORE) & set(plan.suites):
            env = {**env, **ADAPTERS}
            _bring_artifacts(plan.artifacts, data_dir)
        if "attacks" in plan.suites:
            env = {**env, **PATIENT}
        servers = {
            "guarded": stack.enter_context(
                serve.guarded(plan.full, logs / "guarded.log", data_dir, options=plan.options, env=env)
            )
        }
        if {"targets", *MORE} & set(plan.suites):
            servers["never"] = stack.enter_context(serve.bare(plan.never, logs / "never.log"))
        servers["unguarded"] = stack.enter_context(serve.bare(plan.full, logs / "unguarded.log"))
        return await _run(servers, items, names, plan)
