"""What a forget request can show: since when a target is enforced, by what, measured how, and how often it acted.

A bundle is one JSON document, signed with the installation's Ed25519 key. It holds no text of the target and no name:
the target is known by a keyed digest that only this installation can make again. The document has one form (`written`),
and a file in any other is not what was issued.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from guard import specs
from guard.crypto import Secrets, fingerprint, is_signed
from guard.errors import BadRequest, NotFound
from guard.interventions.lora_adapter import LEARNED
from guard.register import Register
from guard.store import Store
from guard.targets import StoredTarget, TargetSpec

Json = dict[str, Any]
ALGORITHM = "ed25519"
_TRAINED = ("trainer", "forget", "retain")  # no parameters: some are texts or places of a machine
_DROPPED = ("from", "slices", "rows", "asked", "retrained")


class Evidence:
    """Makes the bundles of one installation."""

    def __init__(
        self, store: Store, register: Register, secrets: Secrets, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._register = register
        self._secrets = secrets
        self._clock = clock

    @property
    def fingerprint(self) -> str:
        """By which those who get a bundle know whose it is."""
        return fingerprint(self._secrets.public_key)

    async def bundle(self, target_id: str, tenant: str | None = None) -> bytes:
        """The signed document.

        Raises:
            NotFound: there is no such target for this tenant, or nothing is left of it.
        """
        artifacts = {row["digest"]: row for row in await self._register.artifacts()}
        return await asyncio.to_thread(self._signed, target_id, tenant, artifacts)

    def _signed(self, target_id: str, tenant: str | None, artifacts: Mapping[str, Json]) -> bytes:
        claims = self._claims(target_id, tenant, artifacts)
        key = self._secrets.public_key
        signature = {
            "algorithm": ALGORITHM,
            "public_key": key.hex(),
            "value": self._secrets.sign(written(claims)).hex(),
        }
        return written({"evidence": claims, "signature": signature})

    def _claims(self, target_id: str, tenant: str | None, artifacts: Mapping[str, Json]) -> Json:
        history = self._history(target_id, tenant)
        last, deleted = history[-1], self._store.targets.deleted_at(target_id)
        view = self._view(target_id, tenant) if deleted is None else {}
        counted = self._store.decisions.count(target_id)
        made = self._store.jobs.artifacts_of(target_id)
        named = {one["artifact"]: one["state"] for one in view.get("artifacts", ()) if one["artifact"]}
        return {
            "format": 1,
            "issued_at": _when(self._clock()),
            "target": {
                "digest": self._secrets.digest("evidence-target", target_id),
                "kind": last.spec.kind,
                "reference": last.spec.reference,
                "tenants": len(last.spec.scope.tenants),
                "models": len(last.spec.scope.models),
            },
            "enforcement": {
                "state": view.get("state", "deleted"),
                "snapshot": self._register.snapshot.version,
                "enforced_since": _enforced_since(history, deleted),
                "deleted_at": _when(deleted),
                "versions": [self._version(one) for one in history],
            },
            "calibration": view.get("calibration", {}),
            "artifacts": [
                _artifact(artifacts[digest], named.get(digest))
                for digest in sorted(made.union(named, *(_digests(one.spec) for one in history)))
                if digest in artifacts
            ],
            "decisions": {
                "by_action": dict(counted.by_action),
                "first": _when(counted.first),
                "last": _when(counted.last),
            },
        }

    def _history(self, target_id: str, tenant: str | None) -> list[StoredTarget]:
        history = self._store.targets.history(target_id)
        if history and specs.belongs(history[-1].spec, tenant):
            return history
        if tenant is None and self._store.targets.purged(target_id):
            raise NotFound("This target was purged, and all that could be shown of it is erased.", param="id")
        raise NotFound(f"There is no target '{target_id}'.", param="id")

    def _view(self, target_id: str, tenant: str | None) -> Json:
        return self._register.view(target_id, tenant)[0]

    def _version(self, stored: StoredTarget) -> Json:
        """One version: when it was put in force, and what it asks for. Parameters may be texts, so of them only the
        artifact is told; `content` changes with any part of the version."""
        spec = stored.spec
        content = json.dumps(specs.written_form(spec), sort_keys=True)
        ladder = spec.ladder()
        return {
            "version": stored.version,
            "since": stored.updated_at.isoformat(),
            "expires_at": spec.expires_at.isoformat() if spec.expires_at else None,
            "mode": spec.mode,
            "ladder": "auto" if ladder is None else [
                {"method": r.method, "min_score": r.min_score, "artifact": r.params.get("artifact")} for r in ladder
            ],
            "detectors": list(spec.detectors),
            "content": self._secrets.digest("evidence-content", content),
        }  # fmt: skip


def written(document: Mapping[str, Any]) -> bytes:
    """The one form of a document."""
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"


def verified(bundle: bytes, of: str) -> Json:
    """What a bundle says, every byte of which is as the owner of the key with the fingerprint `of` signed it.

    Raises:
        BadRequest: it was signed by somebody else, was changed, or is no bundle.
    """
    try:
        document = json.loads(bytes(bundle))
        claims, signature = document["evidence"], document["signature"]
        key, value = bytes.fromhex(signature["public_key"]), bytes.fromhex(signature["value"])
        whole = {"algorithm": ALGORITHM, "public_key": key.hex(), "value": value.hex()}
        unchanged = written({"evidence": claims, "signature": whole}) == bundle
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest("This is no evidence bundle.") from None
    if fingerprint(key) != of.strip().lower():
        raise BadRequest("This bundle was signed with another key than the one you named.")
    if not unchanged or not is_signed(written(claims), value, key):
        raise BadRequest("This bundle was changed after it was signed.")
    return dict(claims)


def _artifact(row: Json, state: str | None) -> Json:
    """What the manifest says of an artifact, without its parameters; `state` is None where no rung names it now."""
    trained, learned = row.get("trained", {}), row.get("facts", {}).get(LEARNED, {})
    exact = learned.get("exact") is True
    dropped = learned.get("dropped", ()) if exact else ()
    return {
        "digest": row["digest"],
        "method": row["method"],
        "base_model": row.get("base_model"),
        "state": state,
        "measured": row.get("measured", {}),
        "trained": {name: trained[name] for name in _TRAINED if name in trained},
        "removal": "exact" if exact else "approximate",
        "dropped": [{name: one[name] for name in _DROPPED if name in one} for one in dropped],
    }


def _enforced_since(history: Sequence[StoredTarget], deleted: float | None) -> str | None:
    """Since when requests are edited without a break; None: they are not now."""
    since = None
    for stored in reversed(history if deleted is None else ()):
        if (
            stored.spec.mode != "enforce" or stored.updated_at < stored.created_at
        ):  # of an earlier, deleted life
            break
        since = stored.updated_at.isoformat()
    return since


def _digests(spec: TargetSpec) -> Iterable[str]:
    rungs = spec.ladder() or ()
    return (*spec.detectors, *(d for rung in rungs if (d := rung.params.get("artifact"))))


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
