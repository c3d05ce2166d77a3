"""The guarded server beside bare vLLM with the same arguments: every route, and isolation end to end."""

import subprocess
import sys
from pathlib import Path

import pytest

from evals import serve

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
