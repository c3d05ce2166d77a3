"""The console's style sheet, script and icon: three files, read once."""

from __future__ import annotations

import hashlib
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from guard.errors import NotFound
from server.console.desk import FOLDER

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def answer(request: Request) -> Response:
    """The asset, or 304 to a browser that has it. Browsers ask each time, so that a new version shows at once."""
    found = _files().get(request.path_params["name"])
    if found is None:
        raise NotFound("There is no such file.")
    content, media_type, etag = found
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    found = {}
    for path in (FOLDER / "static").iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = (content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found
