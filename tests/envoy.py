"""A real Envoy with the configuration of `deploy/compose`, in which only the addresses are the test's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from evals.serve import free_port
from tests.tools import ROOT, tool

CONFIG = ROOT / "deploy" / "compose" / "envoy.yaml"
START_SECONDS = 60


@dataclass(frozen=True)
class Gateway:
    """`url` is the listener for clients, `admin_url` that for operators."""

    url: str
    admin_url: str
    stats_url: str

    def healthy(self) -> int:
        """How many servers Envoy asks now."""
        return self.stat("cluster.lethe.membership_healthy")

    def stat(self, name: str) -> int:
        shown: list[dict[str, Any]] = httpx.get(
            f"{self.stats_url}/stats", params={"filter": f"^{name}$", "format": "json"}
        ).json()["stats"]
        return next((stat["value"] for stat in shown if stat.get("name") == name), 0)


@contextmanager
def gateway(*ports: int, folder: Path) -> Iterator[Gateway]:
    """Envoy on loopback in front of servers at these ports, of which it has asked every one how it is.

    Configuration and log are left in `folder`.
    """
    envoy = tool("envoy")
    config = yaml.safe_load(CONFIG.read_text())
    own = [_at(listener["address"]) for listener in config["static_resources"]["listeners"]]
    stats = _at(config["admin"]["address"])
    ends = [{"socket_address": {"address": "127.0.0.1", "port_value": port}} for port in ports]
    for cluster in config["static_resources"]["clusters"]:
        cluster["type"] = "STATIC"
        cluster["load_assignment"]["endpoints"] = [
            {"lb_endpoints": [{"endpoint": {"address": end}} for end in ends]}
        ]
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    running = Gateway(*(f"http://127.0.0.1:{port}" for port in (*own, stats)))
    with (folder / "envoy.log").open("wb") as log:
        command = [envoy, "-c", folder / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, f"{running.stats_url}/ready", folder / "envoy.log")
            yield running
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _at(address: dict[str, Any]) -> int:
    port = free_port()
    address["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    return port


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < ends, "Envoy does not answer"
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
