"""What docs/quickstart.md tells a newcomer to type, typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.engine

TEXT = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", TEXT, re.M | re.S)
MARK = "----- block"


def script(base_url):
    """All blocks in one shell, each with its number in front of what it prints."""
    lines = ["set -euo pipefail"]
    for number, (language, code) in enumerate(BLOCKS):
        code = code.replace("http://127.0.0.1:8000", base_url)
        run = f"python3 - <<'PYTHON'\n{code}PYTHON\n" if language == "python" else code
        lines += [f"echo; echo '{MARK} {number}'", run]
    return "\n".join(lines)


def test_the_quickstart_does_what_it_says(running, tmp_path):
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LETHE_ADMIN_KEY": running.admin_key,
        "LETHE_SERVER": running.base_url,
    }
    shell = ["bash", "-c", script(running.base_url)]
    done = subprocess.run(shell, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    _, *printed = re.split(rf"^{MARK} \d+$", done.stdout, flags=re.M)
    asked, put, again, python, look, decision, show, removed = printed
    assert "Kestrel Bay" in asked
    assert '"state":"active"' in put and '"calibration"' in put
    assert "Kestrel Bay" not in again and '"finish_reason":"stop"' in again
    assert "Kestrel Bay" not in python and "How can I help you?" in python
    assert re.search(r"\bintervene\b", look) and re.search(r"\ballow\b", look)
    assert '"action":"intervene"' in decision and '"planned"' in decision and "Breton Wickley" not in decision
    evidence = (tmp_path / "breton-wickley.evidence.json").read_text()
    assert "TICKET-17" in evidence and "Wickley" not in evidence and show.strip()
    assert "Kestrel Bay" in removed
