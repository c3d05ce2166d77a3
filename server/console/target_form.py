"""A target as a form: what its fields show, and the target that was typed into them.

Only what no target could be made of is refused here (text that is not JSON, a number that is none); everything else is
judged by the register, as a write of the admin API is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from guard.targets import Policy, ReplySpec, TargetSpec
from server.console import show
from server.console.desk import Visit

Json = dict[str, Any]

LISTS = ("aliases", "examples", "answers", "retain", "detectors", "tags")
CHOICES = {
    "kind": get_args(TargetSpec.model_fields["kind"].annotation),
    "mode": get_args(TargetSpec.model_fields["mode"].annotation),
    "style": get_args(ReplySpec.model_fields["style"].annotation),
    "threshold_by": ("fpr", "score"),
}
POLICIES = {name: get_args(of.annotation) for name, of in Policy.model_fields.items()}
"""What each part of the policy may be; a number where nothing is listed."""


@dataclass
class Filled:
    """`raw` is the target, `shown` what stands in the fields, `wrong` what could not be read, by field."""

    shown: Json
    raw: Json = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def read(self, name: str, text: str, reader: Callable[[str], Any], told: str) -> Any:
        """The value of a field, None where it cannot be read."""
        try:
            return reader(text)
        except ValueError:
            self.wrong[name] = told
            return None


def fields_of(view: Mapping[str, Any]) -> Json:
    """What the fields show of a target."""
    intervention, threshold = view["intervention"], view["threshold"]
    by = "fpr" if threshold.get("fpr") is not None else "score"
    return {
        "id": view["id"] or "",
        "name": view["name"],
        "description": view["description"],
        "reference": view["reference"] or "",
        **{name: show.as_lines(view[name]) for name in LISTS},
        "tenants": show.as_lines(view["scope"]["tenants"]),
        "models": show.as_lines(view["scope"]["models"]),
        "kind": view["kind"],
        "mode": view["mode"],
        "intervention": intervention if isinstance(intervention, str) else show.pretty(intervention),
        "threshold_by": by,
        "threshold": str(threshold[by]),
        "style": view["reply"]["style"],
        "text": view["reply"]["text"] or "",
        "policy": {name: str(value) for name, value in view["policy"].items()},
        "expires_at": show.local(view["expires_at"]),
        "metadata": show.pretty(view["metadata"]) if view["metadata"] else "",
        "force": False,
    }


def filled(visit: Visit) -> Filled:
    """The target that was typed into the form."""
    plain = ("id", "name", "description", "reference", "text", "expires_at", "metadata", "intervention")
    names = (*plain, *LISTS, "tenants", "models", "threshold", *CHOICES)
    shown: Json = {name: visit.given(name) for name in names}
    shown["policy"] = {name: visit.given(f"policy.{name}") for name in POLICIES}
    shown["force"] = bool(visit.given("force"))
    form = Filled(shown)
    no_list = "Write one on each line, or a JSON list of texts."
    lists = {
        name: form.read(name, shown[name], show.from_lines, no_list) for name in (*LISTS, "tenants", "models")
    }
    scope = {"tenants": lists.pop("tenants"), "models": lists.pop("models")}
    form.raw = {
        "name": shown["name"].strip(),
        "description": shown["description"].strip(),
        "reference": shown["reference"].strip() or None,
        **lists,
        "scope": scope,
        "kind": shown["kind"],
        "mode": shown["mode"],
        "intervention": form.read(
            "intervention", shown["intervention"], _intervention, "Write auto, or rungs as JSON."
        ),
        "threshold": {
            shown["threshold_by"]: form.read("threshold", shown["threshold"], float, "Write a number.")
        },
        "reply": {"style": shown["style"], "text": shown["text"].strip() or None},
        "policy": {name: _policy(form, name, text) for name, text in shown["policy"].items()},
        "expires_at": shown["expires_at"].strip() or None,
        "metadata": form.read("metadata", shown["metadata"], _object, "Write a JSON object."),
    }
    return form


def _policy(form: Filled, name: str, text: str) -> Any:
    return text if POLICIES[name] else form.read("policy", text, int, f"{name} must be a number.")


def _intervention(text: str) -> Any:
    return text.strip() if text.strip() in ("auto", "") else show.read_json(text)


def _object(text: str) -> Json:
    value = show.read_json(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise ValueError
    return value
