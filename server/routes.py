"""Every path that answers, and who may call it. A path that is not here, or is closed, answers 404.

vLLM's application registers more than a guarded server should offer. The table is the whole surface: a test
compares it with the routes that the application really has, so that a new vLLM route is a decision of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class Access(StrEnum):
    """Who may call a route."""

    PUBLIC = "public"  # no key: probes and the console's login page
    INFERENCE = "inference"  # inference keys (and admin keys); judged where it generates
    METRICS = "metrics"  # loopback without a key, `auditor` elsewhere
    CHECK = "check"  # checks for gateways, which ask for the key themselves
    CONTROL = "control"  # engine control: admin keys only
    ADMIN = "admin"  # the admin API checks the role itself, route by route
    CONSOLE = (
        "console"  # the console checks its session and the role of the session's key itself, page by page
    )
    CLOSED = "closed"  # does not exist here


@dataclass(frozen=True, slots=True)
class Route:
    """A path template and who may call it; `generates` marks those whose body becomes a prompt."""

    path: str
    access: Access
    generates: bool = False

    def matches(self, path: str) -> bool:
        return _pattern(self.path).fullmatch(path) is not None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]+\})", template)
    return re.compile("".join("[^/]+" if p.startswith("{") else re.escape(p) for p in parts))


def _all(access: Access, *paths: str, generates: bool = False) -> tuple[Route, ...]:
    return tuple(Route(path, access, generates) for path in paths)


TABLE: tuple[Route, ...] = (
    *_all(Access.PUBLIC, "/livez", "/readyz", "/health", "/ping", "/version"),
    *_all(Access.METRICS, "/metrics", "/metrics/"),
    *_all(
        Access.INFERENCE,
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        generates=True,
    ),
    *_all(
        Access.INFERENCE,
        "/v1/models",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/messages/render",
        "/v1/responses/render",
        "/openapi.json",
    ),
    *_all(
        Access.ADMIN,
        "/admin/v1/targets",
        "/admin/v1/targets/validate",
        "/admin/v1/targets/import",
        "/admin/v1/targets/export",
        "/admin/v1/targets/{id}",
        "/admin/v1/targets/{id}/evidence",
        "/admin/v1/snapshots",
        "/admin/v1/snapshots/{number}/rollback",
        "/admin/v1/check",
        "/admin/v1/score",
        "/admin/v1/decisions",
        "/admin/v1/decisions/{id}",
        "/admin/v1/audit",
        "/admin/v1/audit/verify",
        "/admin/v1/artifacts",
        "/admin/v1/artifacts/{digest}",
        "/admin/v1/jobs",
        "/admin/v1/jobs/{id}",
        "/admin/v1/status",
        "/admin/v1/keys",
        "/admin/v1/keys/{id}",
        "/admin/v1/keys/{id}/rotate",
    ),
    *_all(Access.PUBLIC, "/console/login", "/console/static/{name}"),
    *_all(
        Access.CONSOLE,
        "/console",
        "/console/logout",
        "/console/targets",
        "/console/targets/{id}",
        "/console/targets/{id}/edit",
        "/console/targets/{id}/delete",
        "/console/targets/{id}/evidence",
        "/console/new-target",
        "/console/import",
        "/console/calibration",
        "/console/playground",
        "/console/decisions",
        "/console/decisions/{id}",
        "/console/jobs",
        "/console/jobs/{id}",
        "/console/jobs/{id}/end",
        "/console/new-job",
        "/console/reports",
        "/console/reports/{name}",
        "/console/reports/{name}/page",
        "/console/audit",
        "/console/keys",
        "/console/keys/{id}/revoke",
        "/console/keys/{id}/rotate",
    ),
    *_all(
        Access.CHECK,
        "/v1/guardrail/checks",
        "/v1/checks",
        "/request",
        "/response",
        "/response/mask",
        "/beta/litellm_basic_guardrail_api",
    ),
    *_all(
        Access.CONTROL,
        "/load",
        "/kv_event_sources",
        "/server_info",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/release_kv_cache_memory",
        "/pause",
        "/resume",
        "/is_paused",
        "/abort_requests",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/start_profile",
        "/stop_profile",
        "/get_world_size",
        "/weight_info",
        "/is_scaling_elastic_ep",
        "/scale_elastic_ep",
    ),
    # Generation by other wire forms: raw sampling parameters, likelihoods as answers, or another route in disguise.
    *_all(
        Access.CLOSED,
        "/inference/v1/generate",
        "/inference/v1/abort_requests",
        "/invocations",
        "/generative_scoring",
        "/v1/systemone",
        "/v1/chat/completions/derender",
        "/v1/completions/derender",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/realtime",
        "/cohere/v2/chat",
        "/v2/embed",
    ),
    # Calls into the worker and weight changes would switch the guard off from outside.
    *_all(
        Access.CLOSED,
        "/collective_rpc",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/update_weight_version",
        "/weight_checker",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/tokenizer_info",
    ),
    # The interactive pages load scripts from another host.
    *_all(Access.CLOSED, "/docs", "/docs/oauth2-redirect", "/redoc"),
)

_EXACT = {route.path: route for route in TABLE}


def find(path: str) -> Route | None:
    """The open route that serves `path`, or None; exact paths win over templates."""
    hit = _EXACT.get(path) or next((route for route in TABLE if route.matches(path)), None)
    return hit if hit and hit.access is not Access.CLOSED else None
