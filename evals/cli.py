"""The command line: `python -m evals SUITE ...`, which is also `lethe eval SUITE ...`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import click

from evals import cli_attacks, cli_evasion, cli_judges, cli_local, cli_published, cli_reports, options
from evals.admin import Admin
from evals.client import Client
from evals.items import load_names, names_in
from evals.judges import LlmJudge
from evals.report import Report
from evals.suites import isolation as isolation_suite
from evals.suites import methods as methods_suite
from evals.suites import output as output_suite
from evals.suites import parity as parity_suite
from evals.suites import swap as swap_suite
from evals.suites import targets as targets_suite
from guard.detection import Compiler, Encoder


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measures a guarded server: what it forgets, and that nobody else notices.

    Every suite writes a JSON report and prints its tables. Exit code 1: a criterion failed or a server did;
    2: wrong usage.

    \b
    Example:
      python -m evals targets --base-url http://127.0.0.1:8000 --reference-url http://127.0.0.1:8001
    """


@main.command()
@click.option("--base-url", required=True, help="The guarded server.")
@click.option("--reference-url", help="A server with the model that never learned the targets.")
@click.option("--base-only-url", help="The same model unguarded: measures unfair suppression.")
@options.key_option
@options.items_option()
@click.option(
    "--names",
    "names_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Names of all entities, one a line. Default: those of the items.",
)
@options.entailment_option
@options.encoder_options
@options.judge_options
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@options.rate_option
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Exit with 1 when a criterion fails."
)
@options.common_options("targets")
def targets(
    base_url: str,
    reference_url: str | None,
    base_only_url: str | None,
    key: str | None,
    items_path: Path,
    names_path: Path | None,
    load: Callable[[], tuple[Encoder, Compiler]],
    judge: Callable[[AsyncExitStack], Awaitable[LlmJudge | None]],
    entailment: bool,
    max_tokens: int,
    concurrency: int,
    rate: float | None,
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Forgetting against a never-learned reference, and unfair suppression.

    \b
    Example:
      python -m evals targets --base-url http://127.0.0.1:8000 --key $LETHE_KEY \\
        --reference-url http://127.0.0.1:8001 --base-only-url http://127.0.0.1:8002
    """
    items = options.read_items(items_path)
    names = load_names(names_path) if names_path else names_in(items)
    urls = {"guarded": (base_url, key), "never": (reference_url, key), "unguarded": (base_only_url, None)}

    async def work() -> Report:
        async with AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(Client(url, secret, rate=rate))
                for name, (url, secret) in urls.items()
                if url
            }
            return await targets_suite.run(
                items,
                names,
                clients,
                encoder=(lambda: load()[0]) if entailment else None,
                llm=await judge(stack),
                seed=seed,
                max_tokens=max_tokens,
                concurrency=concurrency,
            )

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path, check=check)


@main.command()
@click.option("--guarded-url", required=True, help="The guarded server.")
@click.option("--bare-url", required=True, help="Bare vLLM on the same model with the same arguments.")
@options.key_option
@options.admin_key_option
@options.items_option()
@click.option("--n", type=click.IntRange(1), default=500, show_default=True, help="Unmatched requests.")
@click.option(
    "--beside",
    type=click.FloatRange(0, 0.9),
    default=1 / 3,
    show_default="1/3",
    help="Share of all requests that match a target.",
)
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--tolerance",
    type=float,
    default=isolation_suite.TOLERANCE,
    show_default=True,
    help="Gap of bare's two best log-probabilities that counts as a tie.",
)
@click.option(
    "--delta-limit",
    type=float,
    default=isolation_suite.DELTA_LIMIT,
    show_default=True,
    help="Largest change of a log-probability on equal prefixes.",
)
@options.common_options("isolation")
def isolation(
    guarded_url: str,
    bare_url: str,
    key: str | None,
    admin_key: str | None,
    items_path: Path,
    n: int,
    beside: float,
    concurrency: int,
    max_tokens: int,
    tolerance: float,
    delta_limit: float,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Unmatched requests: guarded against bare, with bare against itself as the control.

    With --admin-key, unmatched requests that the guard matched by mistake are set apart (that is the
    business of the suite `targets`); without it they count as violations.

    \b
    Example:
      python -m evals isolation --guarded-url http://127.0.0.1:8000 --bare-url http://127.0.0.1:8001
    """
    items = options.read_items(items_path)

    async def work() -> Report:
        async with Client(guarded_url, admin_key or key) as guarded, Client(bare_url) as bare:
            admin = Admin(guarded) if admin_key else None
            return await isolation_suite.run(
                items,
                guarded,
                bare,
                admin=admin,
                n=n,
                beside=beside,
                seed=seed,
                concurrency=concurrency,
                max_tokens=max_tokens,
                tolerance=tolerance,
                delta_limit=delta_limit,
            )

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path)


@main.command()
@click.option("--guarded-url", required=True, help="The guarded server.")
@click.option("--bare-url", required=True, help="Bare vLLM on the same model with the same arguments.")
@options.key_option
@options.items_option()
@click.option("--max-tokens", type=click.IntRange(1), default=24, show_default=True)
@click.option(
    "--expect-header/--no-expect-header",
    default=True,
    show_default=True,
    help="Off to compare two bare servers: nothing may differ then.",
)
@options.common_options("parity")
def parity(
    guarded_url: str,
    bare_url: str,
    key: str | None,
    items_path: Path,
    max_tokens: int,
    expect_header: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Every route and option that clients use, compared body by body.

    \b
    Example:
      python -m evals parity --guarded-url http://127.0.0.1:8000 --bare-url http://127.0.0.1:8001
    """
    items = options.read_items(items_path)

    async def work() -> Report:
        async with Client(guarded_url, key) as first, Client(bare_url) as second:
            guarded, bare = parity_suite.Server(first, key), parity_suite.Server(second, None)
            try:
                prompts = parity_suite.pick_prompts(items)
                return await parity_suite.run(
                    prompts, guarded, bare, expect_header=expect_header, max_tokens=max_tokens
                )
            finally:
                await guarded.close()
                await bare.close()

    report = options.drive(work())
    report.seed = seed
    options.finish(report, out, rows=rows, items_path=items_path)


@main.command()
@click.option("--base-url", required=True, help="The guarded server.")
@options.admin_key_option
@options.items_option()
@click.option("--targets", "count", type=click.IntRange(1), default=20, show_default=True)
@click.option("--clients", type=click.IntRange(0), default=16, show_default=True, help="Streaming meanwhile.")
@options.common_options("swap")
def swap(
    base_url: str,
    admin_key: str | None,
    items_path: Path,
    count: int,
    clients: int,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Puts, updates and deletes targets while clients stream.

    \b
    Example:
      LETHE_ADMIN_KEY=... python -m evals swap --base-url http://127.0.0.1:8000
    """
    items = options.read_items(items_path)

    async def work() -> Report:
        prompts = parity_suite.pick_prompts(items)
        return await swap_suite.run(base_url, admin_key, prompts, count=count, clients=clients, seed=seed)

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path)


@main.command()
@click.option("--base-url", required=True, help="The guarded server, without targets that match the items.")
@options.admin_key_option
@options.items_option()
@click.option(
    "--targets-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Names and aliases of the items' entities, JSON lines: facts are registered in other words too.",
)
@click.option("--bare-url", help="The same model unguarded: both are timed in turns.")
@click.option(
    "--reference-url",
    help="A server with the model that never learned the targets: its likelihoods tell least.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@options.common_options("output")
def output(
    base_url: str,
    admin_key: str | None,
    items_path: Path,
    targets_file: Path | None,
    bare_url: str | None,
    reference_url: str | None,
    max_tokens: int,
    concurrency: int,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """What leaves when no prompt matches and only the answer can give a target away.

    \b
    Example:
      LETHE_ADMIN_KEY=... python -m evals output --base-url http://127.0.0.1:8000 \\
        --targets-file demo/targets.jsonl
    """
    items = options.read_items(items_path)
    lines = targets_file.read_text(encoding="utf-8").splitlines() if targets_file else []

    async def work() -> Report:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(base_url, admin_key))
            others = [
                await stack.enter_async_context(Client(url)) if url else None
                for url in (bare_url, reference_url)
            ]
            return await output_suite.run(
                items,
                client,
                Admin(client),
                targets=[json.loads(line) for line in lines],
                unguarded=others[0],
                never=others[1],
                seed=seed,
                max_tokens=max_tokens,
                concurrency=concurrency,
            )

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path)


@main.command()
@click.option("--base-url", required=True, help="The guarded server.")
@click.option(
    "--reference-url", required=True, help="A server with the model that never learned the targets."
)
@click.option("--base-only-url", required=True, help="The same model unguarded.")
@options.admin_key_option
@options.items_option()
@click.option(
    "--method", "chosen", multiple=True, help="Only this one; repeatable. Default: all that are ready."
)
@click.option(
    "--shown", default="demo-methods", show_default=True, help="The target whose rungs are measured."
)
@click.option("--tag", default="demo", show_default=True, help="The targets that they are laid on.")
@click.option(
    "--sample", type=click.IntRange(1), help="At most so many questions of each split and phrasing."
)
@click.option("--others", type=click.IntRange(0), help="The same, of those about anything but the targets.")
@click.option("--curves", is_flag=True, help="Instead, the trade-off of methods over their parameters.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Exit with 1 when a criterion fails."
)
@options.common_options("methods")
def methods(
    base_url: str,
    reference_url: str,
    base_only_url: str,
    admin_key: str | None,
    items_path: Path,
    chosen: tuple[str, ...],
    shown: str,
    tag: str,
    sample: int | None,
    others: int | None,
    curves: bool,
    max_tokens: int,
    concurrency: int,
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """One table over all interventions, each by itself on the same targets. Changes the targets while it runs.

    \b
    Example:
      LETHE_ADMIN_KEY=... python -m evals methods --base-url http://127.0.0.1:8000 \\
        --reference-url http://127.0.0.1:8001 --base-only-url http://127.0.0.1:8002 --sample 100
    """
    items = options.read_items(items_path)
    plan = methods_suite.Plan(
        chosen, shown, tag, sample, others, max_tokens=max_tokens, concurrency=concurrency, seed=seed
    )
    suite = methods_suite.run_curves if curves else methods_suite.run

    async def work() -> Report:
        async with (
            Client(base_url, admin_key) as guarded,
            Client(reference_url) as never,
            Client(base_only_url) as bare,
        ):
            clients = {"guarded": guarded, "never": never, "unguarded": bare}
            return await suite(items, names_in(items), clients, Admin(guarded), plan)

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path, check=check)


for command in (
    cli_local.demo,
    cli_local.detection,
    cli_local.conversations,
    cli_attacks.attacks,
    cli_attacks.relearn,
    cli_evasion.evasion,
    cli_judges.judges,
    *cli_reports.COMMANDS,
    *cli_published.COMMANDS,
):
    main.add_command(command)
