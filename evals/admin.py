"""The admin API as the suites use it: targets, checks and decisions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from evals.client import Client, ClientError

_READABLE_WITHIN = 3.0  # the decision log promises 1 s after a response's end; a loaded machine gets more


class Admin:
    """Admin calls over a `Client` made with an admin key."""

    def __init__(self, client: Client):
        self._client = client

    async def _call(self, method: str, path: str, expect: tuple[int, ...], **options: Any) -> httpx.Response:
        response = await self._client.call(method, f"/admin/v1{path}", **options)
        if response.status_code not in expect:
            raise ClientError(
                f"{method} /admin/v1{path} answered {response.status_code}: {response.text[:300]}"
            )
        return response

    async def put(self, target_id: str, target: dict[str, Any]) -> None:
        await self._call("PUT", f"/targets/{target_id}", (200, 201), json=target)

    async def patch(self, target_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes some fields; the target as it is then."""
        return (await self._call("PATCH", f"/targets/{target_id}", (200,), json=changes)).json()

    async def target(self, target_id: str) -> dict[str, Any]:
        return (await self._call("GET", f"/targets/{target_id}", (200,))).json()

    async def targets(self, tag: str) -> list[dict[str, Any]]:
        """All targets with a tag, by id."""
        found: list[dict[str, Any]] = []
        query: dict[str, str] = {"tag": tag}
        while True:
            page = (await self._call("GET", "/targets", (200,), params=query)).json()
            found += page["data"]
            if not page["next_cursor"]:
                return found
            query["cursor"] = page["next_cursor"]

    async def status(self) -> dict[str, Any]:
        return (await self._call("GET", "/status", (200,))).json()

    async def delete(self, target_id: str) -> None:
        await self._call("DELETE", f"/targets/{target_id}", (200, 202, 204), params={"purge": "true"})

    async def import_targets(self, lines: str) -> dict[str, Any]:
        """Imports JSON lines; rejected lines are an error."""
        headers = {"Content-Type": "application/x-ndjson"}
        response = await self._call("POST", "/targets/import", (200, 201), content=lines, headers=headers)
        if rejected := response.json().get("rejected"):
            raise ClientError(f"{len(rejected)} targets were rejected; the first: {rejected[0]}")
        return response.json()

    async def check(self, text: str) -> dict[str, Any]:
        """The decision that this prompt would get now."""
        body = {"messages": [{"role": "user", "content": text}]}
        return (await self._call("POST", "/check", (200,), json=body)).json()["decision"]

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """The decision record, once it is readable; None if it never becomes so."""
        deadline = time.monotonic() + _READABLE_WITHIN
        while True:
            response = await self._client.call("GET", f"/admin/v1/decisions/{decision_id}")
            if response.status_code == 200:
                return response.json()
            if response.status_code != 404:
                raise ClientError(
                    f"GET /admin/v1/decisions answered {response.status_code}: {response.text[:300]}"
                )
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.02)

    async def touched(self, decision_id: str) -> bool:
        """Whether anything was done to the request or its answer, as recorded."""
        record = await self.decision(decision_id)
        return record is not None and (action(record) != "allow" or bool(record.get("applied")))


def _decision(record: dict[str, Any]) -> dict[str, Any]:
    """The decision, where the record wraps it as check does."""
    inner = record.get("decision")
    return inner if isinstance(inner, dict) else record


def action(record: dict[str, Any]) -> str | None:
    return _decision(record).get("action")


def matches(record: dict[str, Any], target_id: str) -> bool:
    """Whether a check's decision or a decision record says that the target matched and was acted upon."""
    decision = _decision(record)
    listed = decision.get("targets") or ()
    ids = {target["id"] if isinstance(target, dict) else target for target in listed}
    return decision.get("action") in ("intervene", "refuse") and target_id in ids
