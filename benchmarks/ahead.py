"""What it brings to begin with prompts before their verdict, and what it costs where the verdict is a match.

Two guarded servers with the same targets, of which one waits for every verdict, get the same prompts one at a time and
in turn; who goes first alternates. Every prompt is new, so nothing of it was judged or computed before. Under `names` a
person is registered; under `meaning` a subject that no name tells, for which every part of a prompt is embedded.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from tokenizers import Tokenizer

from benchmarks.driving import DEMO, ROOT
from benchmarks.ratios import SAMPLES, interval, quantile_ratio
from benchmarks.register import SUBJECT, person, questions
from benchmarks.reporting import Report, Row, reported
from benchmarks.sites import make_model
from evals import serve
from guard.metrics.bootstrap import Interval
from guard.targets import TargetSpec

ALL = 1_000_000
REPLY = 4  # tokens of an answer


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Prompts of about so many tokens, with one of `asked` in front of them if they are to match `target`."""

    register: str
    matched: bool
    tokens: int
    target: TargetSpec
    asked: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.register}_{'matched' if self.matched else 'clean'}_{self.tokens}"


class Prompts:
    """Prompts that hold nothing twice but what they ask of a target, counted in tokens of the model."""

    def __init__(self, model: Path, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._questions = questions(self._rng)
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def of(self, case: Case) -> str:
        text = f"{self._rng.randrange(10**6)}."
        if case.matched:
            text += f" {self._rng.choice(case.asked)}"
        while (missing := case.tokens - self._count(text)) > 0:
            more = f" {next(self._questions)}"
            ids = self._tokenizer.encode(more, add_special_tokens=False)
            text += more if len(ids.ids) <= missing else more[: ids.offsets[missing - 1][1]]
            if len(ids.ids) >= missing:
                break
        return text

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def cases(tokens: Sequence[int]) -> list[Case]:
    spec, asked = person(random.Random(0))
    registers = {"names": (spec, tuple(asked)), "meaning": (SUBJECT, SUBJECT.examples)}
    return [
        Case(name, matched, count, *of)
        for (name, of), matched, count in product(registers.items(), (False, True), tokens)
    ]


@dataclass(frozen=True, slots=True)
class Server:
    """A guarded server and a client with its admin key."""

    http: httpx.Client

    def register(self, spec: TargetSpec) -> None:
        """This target and no other."""
        for row in self.http.get("/admin/v1/targets").raise_for_status().json()["data"]:
            self.http.delete(f"/admin/v1/targets/{row['id']}").raise_for_status()
        body = spec.model_dump(mode="json", exclude_unset=True)
        self.http.put("/admin/v1/targets/subject", json=body).raise_for_status()

    def matches(self, prompt: str) -> bool:
        answer = self.http.post("/admin/v1/check", json={"prompt": prompt}).raise_for_status()
        return bool(answer.json()["decision"]["action"] != "allow")

    def first_token(self, prompt: str) -> float:
        """Seconds up to the first token of a streamed answer."""
        body = {"model": "demo", "prompt": prompt, "stream": True, "max_tokens": REPLY, "ignore_eos": True}
        first, started = 0.0, time.perf_counter()
        with self.http.stream("POST", "/v1/completions", json={**body, "temperature": 0}) as answer:
            if answer.is_error:
                raise click.ClickException(f"A request failed: {answer.read().decode()[:200]}")
            for line in answer.iter_lines():
                if line.startswith("data: {") and not first:
                    first = time.perf_counter() - started
        return first


def measure(
    servers: tuple[Server, Server], chosen: Sequence[Case], prompts: Prompts, pairs: int
) -> dict[Case, list[tuple[float, float]]]:
    """Of each case the seconds to the first token without and with beginning early. Cases of one register take turns,
    so that the machine's other work falls on all of them; the first round only warms both servers.

    Raises:
        ClickException: prompts of a case are not judged as they should be.
    """
    found: dict[Case, list[tuple[float, float]]] = {}
    for _, group in groupby(chosen, key=lambda case: case.register):
        together = list(group)
        for server in servers:
            server.register(together[0].target)
        for case in together:
            if servers[0].matches(prompts.of(case)) is not case.matched:
                raise click.ClickException(f"Prompts of {case.name} are not judged as they should be.")
        for number, case in product(range(-1, pairs), together):
            prompt = prompts.of(case)
            order = (0, 1) if number % 2 else (1, 0)
            taken = {i: servers[i].first_token(prompt) for i in order}
            if number >= 0:
                found.setdefault(case, []).append((taken[0], taken[1]))
    return found


def row(case: Case, seconds: Sequence[tuple[float, float]], about: Mapping[str, Any]) -> Row:
    """The ratio of beginning early to waiting, and the milliseconds of both, at the median."""
    name = f"ahead_{case.name}_ttft_p50"
    ratio = quantile_ratio(seconds, 0.5)
    assert ratio is not None
    figures = {
        f"{name}_{side}_ms": median(np.asarray(seconds)[:, at] * 1000)
        for at, side in enumerate(("waiting", "early"))
    }
    return Row(f"ahead {case.name}", about, {name: ratio}, figures)


def median(values: np.ndarray) -> Interval:
    rng = np.random.default_rng(0)
    drawn = [float(np.median(rng.choice(values, len(values)))) for _ in range(SAMPLES)]
    return interval(float(np.median(values)), drawn, len(values))


@contextmanager
def pair(model: Path, arguments: Sequence[str], ahead: int) -> Iterator[tuple[Server, Server]]:
    """A server that waits for every verdict, and one that begins with prompts of up to `ahead` tokens."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def started(tokens: int) -> Server:
            env: Mapping[str, str] = {
                **serve.ENGINE_ENV,
                "LETHE_ENGINE_AHEAD_TOKENS": str(tokens),
                "LETHE_OUTPUT_SEMANTIC": "false",
                "LETHE_DETECTION_DEADLINE_MS": "60000",
            }
            args = [*serve.engine_args(str(model)), *arguments]
            own = (folder / f"{tokens}.log", folder / f"data-{tokens}")
            running = stack.enter_context(serve.guarded(str(model), *own, args=args, env=env))
            headers = {"Authorization": f"Bearer {running.admin_key}"}
            return Server(
                stack.enter_context(httpx.Client(base_url=running.base_url, headers=headers, timeout=600))
            )

        yield started(0), started(ahead)


@click.command()
@click.option(
    "--model",
    type=click.Choice(["demo", "half-billion"]),
    default="demo",
    show_default=True,
    help="The demo's, or one of 0.5 billion random weights.",
)
@click.option("--tokens", multiple=True, type=int, default=(16, 250, 900), show_default=True,
              help="Lengths of prompts.")  # fmt: skip
@click.option("--pairs", default=40, show_default=True, help="Prompts of each case.")
@click.option("--register", "wanted", multiple=True, type=click.Choice(["names", "meaning"]),
              help="What is registered; both where it is left out.")  # fmt: skip
@click.option(
    "--ahead", "most", default=ALL, show_default=True, help="The second server's engine.ahead_tokens."
)
@reported
def ahead(
    model: str, tokens: tuple[int, ...], pairs: int, wanted: tuple[str, ...], most: int, report: Report
) -> None:
    """Times to the first token with prompts begun before their verdict, as ratios to waiting for it.

    Example: python -m benchmarks ahead --tokens 250 --register meaning --pairs 100
    """
    chosen = [case for case in cases(tokens) if not wanted or case.register in wanted]
    with tempfile.TemporaryDirectory() as folder:
        path, arguments = DEMO, list[str]()
        if model != "demo":
            path = make_model(ROOT / "benchmarks" / "shapes" / f"{model}.json", Path(folder))
            arguments = ["--chat-template", str(ROOT / "demo" / "chat_template.jinja")]
        with pair(path, arguments, most) as servers:
            for case, seconds in measure(servers, chosen, Prompts(path), pairs).items():
                report.add(row(case, seconds, {"model": model, "ahead_tokens": most, "pairs": pairs}))
