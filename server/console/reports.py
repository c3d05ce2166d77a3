"""Evaluation reports: pages and JSON files that `lethe eval` wrote into the folder of reports.

A report may quote what models answered. Its page is shown in a frame without scripts, forms or an origin, under a
policy that fetches nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from guard.errors import NotFound, TooLarge
from server.auth import Permission
from server.console.desk import Page, Visit, policy

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(html|json)")
MOST_BYTES = 32 * 2**20
SHOWN_CHARS = 100_000
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)


@dataclass(frozen=True)
class Report:
    name: str
    bytes: int
    written_at: float


async def index(visit: Visit) -> Response:
    found = await asyncio.to_thread(_all, visit.desk.reports)
    return visit.page("reports.html", here="reports", reports=found)


async def report(visit: Visit) -> Response:
    """A page in its frame, a JSON file as text."""
    path = _path(visit)
    if path.suffix == ".html":
        response = visit.page("report.html", here="reports", name=path.name, text=None)
        response.headers["Content-Security-Policy"] = policy(frame_src="'self'")
        return response
    text = _pretty(await asyncio.to_thread(_read, path))
    shown = {"text": text[:SHOWN_CHARS], "whole": len(text) <= SHOWN_CHARS}
    return visit.page("report.html", here="reports", name=path.name, **shown)


async def content(visit: Visit) -> Response:
    """What the frame shows; a JSON file is only to be saved."""
    path = _path(visit)
    raw = await asyncio.to_thread(_read, path)
    if path.suffix == ".json":
        headers = {"Content-Disposition": f'attachment; filename="{path.name}"'}
        return Response(raw, media_type="application/json", headers=headers)
    headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return Response(raw, media_type="text/html; charset=utf-8", headers=headers)


def _all(folder: Path) -> list[Report]:
    """Newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            about = path.stat()
            found.append(Report(path.name, about.st_size, about.st_mtime))
    return sorted(found, key=lambda one: (-one.written_at, one.name))


def _path(visit: Visit) -> Path:
    """Raises NotFound: no such file lies in the folder itself."""
    name = visit.part("name")
    path = visit.desk.reports / name
    if not NAME.fullmatch(name) or not path.is_file() or path.is_symlink():
        raise NotFound("There is no such report.")
    return path


def _read(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise TooLarge("This report is too large to be shown here; open the file itself.")
    return path.read_bytes()


def _pretty(raw: bytes) -> str:
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False, indent=2)
    except ValueError:
        return raw.decode(errors="replace")


PAGES = (
    Page("GET", "/reports", index, Permission.READ_JOBS, whole=True),
    Page("GET", "/reports/{name}", report, Permission.READ_JOBS, whole=True),
    Page("GET", "/reports/{name}/page", content, Permission.READ_JOBS, whole=True),
)
