"""The guarded server beside bare vLLM with the same arguments: every route, and isolation end to end."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evals import serve
from evals.client import Client
from evals.local import Local
from evals.subjects import Ask, Endpoint
from evals.suites.attack_report import FAULTS

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo" / "models" / "full")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    with (
        serve.bare(MODEL, folder / "bare.log") as bare,
        serve.guarded(MODEL, folder / "guarded.log", folder / "data") as guarded,
    ):
        lethe = Path(sys.executable).with_name("lethe")
        target = ROOT / "demo" / "targets.jsonl"
        place = ["--server", guarded.base_url, "--key", guarded.admin_key]
        subprocess.run([lethe, "targets", "import", target, *place], check=True)
        yield guarded, bare


def suite(name, servers, tmp_path, *more):
    guarded, bare = servers
    urls = ["--guarded-url", guarded.base_url, "--bare-url", bare.base_url]
    command = [sys.executable, "-m", "evals", name, *urls, "--out", tmp_path / "report.json", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_openai_python_sees_no_difference_on_unmatched_prompts(servers, tmp_path):
    done = suite("parity", servers, tmp_path, "--key", servers[0].admin_key)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unmatched_requests_beside_matched_ones_get_what_bare_vllm_gives(servers, tmp_path):
    done = suite("isolation", servers, tmp_path, "--n", "100", "--admin-key", servers[0].admin_key)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bare_vllm_tells_over_http_what_the_model_tells_in_process(servers):
    """Answers, likelihoods, places of tokens and recitals: what benchmarks stand on."""
    texts = ["Limir Yarley was born in Vintry.", "Limir Yarley was born in Hollin, and plays the cello."]
    questions = [
        Ask.question("Do you know where Limir Yarley was born?"),
        Ask(text="Question: Who is Fagor Stenden?"),
    ]
    pairs = [(replace(ask, ended=False), text) for ask in questions for text in texts]

    async def told(subject):
        return (await subject.answers(questions, 16), await subject.likelihoods(pairs), await subject.ranks(pairs),
                await subject.recitals(texts, 12))  # fmt: skip

    async def over_http():
        async with Client(servers[1].base_url) as client:
            return await told(Endpoint(client, "bare"))

    answers, likely, ranks, recitals = asyncio.run(over_http())
    own = asyncio.run(told(Local.load(Path(MODEL))))
    assert (answers, ranks, recitals) == (own[0], own[2], own[3])
    for one, other in zip(likely, own[1], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_the_red_team_passes_the_guard_and_names_a_server_without_one(servers, tmp_path):
    guarded, bare = servers
    few = [
        "--attack",
        "synonym manipulation",
        "--attack",
        "described",
        "--attack",
        "oracle",
        "--sample",
        "12",
    ]

    def faults(server, name):
        out = tmp_path / f"{name}.json"
        urls = ["--base-url", server.base_url, "--base-only-url", bare.base_url]
        files = ["--targets-file", ROOT / "demo" / "targets.jsonl", "--out", out]
        more = ["--key", server.admin_key] if server.admin_key else []
        command = [sys.executable, "-m", "evals", "attacks", *urls, *files, *few, *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert out.is_file(), done.stderr
        return done.returncode, json.loads(out.read_text())["results"]["faults"]["guarded"]

    assert faults(guarded, "guarded") == (0, [])
    assert faults(bare, "bare") == (1, [FAULTS["plain"]])
