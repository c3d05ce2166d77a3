"""A real browser for tests: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.tools import missing

START_SECONDS = 30


def executable() -> str:
    """Where Chromium is. Where LETHE_CI is set, that there is none is a failure."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing("there is no Chromium here (Debian: apt-get install chromium)")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser. Its own sandbox needs rights that containers do not give."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application that is served from a thread meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        ends = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive() and time.monotonic() < ends, "the application is not served"
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)
