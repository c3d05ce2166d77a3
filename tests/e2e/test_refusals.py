"""Starts that must not happen: one sentence, exit code 1, before any engine is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine  # these import vLLM, which alone takes longer than all fast tests may
LETHE = Path(sys.executable).with_name("lethe")


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        (["--demo"], {"LETHE_ENCODER": "/nonexistent/encoder"}, "encoder"),
        (["--demo", "--config", "/nonexistent.yaml"], {}, "/nonexistent.yaml"),
        (["m", "--", "--worker-cls", "mine.Worker"], {}, "--worker-cls"),
        (["m", "--", "--enable-prompt-embeds"], {}, "--enable-prompt-embeds"),
        (["--demo"], {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "V2"),
        (["--demo"], {"LETHE_MASTER_KEY": "abc"}, "LETHE_MASTER_KEY"),
    ],
)
def test_a_start_that_cannot_be_guarded_ends_in_one_sentence(tmp_path, args, env, says):
    done = subprocess.run(
        [LETHE, "serve", *args],
        env={**os.environ, "LETHE_DATA_DIR": str(tmp_path / "data"), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
