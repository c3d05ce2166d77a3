"""The pictures of docs/console.md: `python -m tests.system.screenshots` starts the demo, uses it a little, takes them.

Each page is taken as a desktop and as a phone shows it, in 160 colours to be small. The master secret is always the
same, for the answers of an edited model depend on it.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from evals import serve
from tests.browser import chromium

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "console"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
COLOURS, MOST_BYTES, MOST_HEIGHT = 160, 150_000, 1_800
ARGS = ("--enforce-eager", "--block-size", "32")

KNOWN, OTHER = "Where was Limir Yarley born?", "Where was Breton Wickley born?"
TARGET = "limir-yarley"


@contextmanager
def demo(folder: Path) -> Iterator[serve.Running]:
    """The demo as a newcomer starts it, with its state in a folder of its own."""
    log, data = folder / "server.log", folder / "data"
    env = {**serve.ENGINE_ENV, "LETHE_MASTER_KEY": "1e" * 32}
    with serve.guarded("--demo", log, data, name="lethe-demo", args=ARGS, env=env) as running:
        yield running


def log_in(page: Any, server: serve.Running) -> None:
    page.goto(f"{server.base_url}/console/login")
    page.get_by_label("API key").fill(server.admin_key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Overview").wait_for()


def ask(page: Any, server: serve.Running, prompt: str) -> None:
    """Through the playground, with and without the guard."""
    page.goto(f"{server.base_url}/console/playground")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("heading", name="Without the guard").wait_for(timeout=120_000)


def use(server: serve.Running, data: Path) -> str:
    """A few requests, a job and a report; the id of the job."""
    with httpx.Client(base_url=server.base_url, timeout=120) as http:
        for text in (
            KNOWN,
            OTHER,
            f"Tell me something nice. {KNOWN}",
            "Which instrument does Fagor Stenden play?",
        ):
            body = {"model": "lethe-demo", "messages": [{"role": "user", "content": text}], "max_tokens": 32}
            http.post("/v1/chat/completions", json=body).raise_for_status()
        admin = {"Authorization": f"Bearer {server.admin_key}"}
        job = {"kind": "classifier", "target": TARGET, "params": {"attach": False}}
        made = http.post("/admin/v1/jobs", json=job, headers=admin).raise_for_status().json()["id"]
        ends = time.monotonic() + 240
        while http.get(f"/admin/v1/jobs/{made}", headers=admin).json()["ended_at"] is None:
            assert time.monotonic() < ends, "the job does not end"
            time.sleep(1)
        expired = {"name": "Old Ledger", "expires_at": "2026-01-01T00:00:00Z", "reference": "T-0917"}
        http.put("/admin/v1/targets/old-ledger", json=expired, headers=admin).raise_for_status()
    reports = data / "reports"
    reports.mkdir()
    attack = ["attacks", "--base-url", server.base_url, "--key", server.admin_key, "--attack", "described"]
    files = [
        "--targets-file",
        ROOT / "demo" / "targets.jsonl",
        "--out",
        reports / "attacks.json",
        "--sample",
        "8",
    ]
    subprocess.run([sys.executable, "-m", "evals", *attack, *files], cwd=ROOT, check=False)
    return str(made)


def pages(job: str) -> dict[str, str]:
    """Names of pictures and the paths that they show; that of the playground is made by a prompt."""
    return {
        "overview": "",
        "targets": "/targets",
        "target": f"/targets/{TARGET}",
        "form": f"/targets/{TARGET}/edit",
        "calibration": "/calibration",
        "decisions": "/decisions",
        "decision": "/decisions",
        "jobs": "/jobs",
        "job": f"/jobs/{job}",
        "reports": "/reports",
        "report": "/reports/attacks.html",
        "audit": "/audit",
        "keys": "/keys",
        "playground": "/playground",
        "login": "/login",
    }


def show(page: Any, server: serve.Running, name: str, path: str) -> None:
    if name == "playground":
        ask(page, server, KNOWN)
        return
    page.goto(f"{server.base_url}/console{path}")
    if name == "decision":
        page.get_by_role("row").filter(has_text="intervene").last.get_by_role("link").click()
        page.get_by_role("heading", name="What was done").wait_for()


def small(picture: bytes) -> bytes:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, MOST_HEIGHT)))
    made = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    assert made.tell() < MOST_BYTES, f"a picture has {made.tell()} bytes"
    return made.getvalue()


def take(browser: Any, server: serve.Running, job: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for size, (width, height) in SIZES.items():
        context = browser.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        log_in(page, server)
        for name, path in pages(job).items():
            show(page, server, name, path)
            (out / f"{name}-{size}.png").write_bytes(small(page.screenshot(full_page=True)))
        context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as server, chromium() as browser:
        take(browser, server, use(server, Path(folder) / "data"), OUT)


if __name__ == "__main__":
    main()
