"""Everything that can go wrong, drawn as a tree; one place (server/errors.py) maps it to the wire.

LetheError
 |- BadRequest            400  the client's request cannot be taken (param names the field)
 |   `- TooLarge          413  its body is larger than this server takes
 |- Unauthorized          401  no key, or one that is not known
 |- Forbidden             403  a known key that may not do this
 |- NotFound              404
 |- PreconditionFailed    412  If-Match names another version
 |- TargetRefused         422  the target cannot be registered as it is (fields names what, rate is measured)
 |- RateLimited           429  the tenant has used up what it may (headers say when to come back)
 |- ArtifactError         422  an artifact is not whole, does not fit, or has no effect
 |- GuardUnavailable      503  the guard cannot vouch for an answer; safe to retry
 |- ConfigError                configuration, environment or command line; ends the process with one sentence
 `- StartupError               the engine or a part of the guard is not live; ends the process with one sentence
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Reason = Literal["timeout", "queue", "detection", "output", "edit", "adapter", "engine", "store", "other"]
"""What kept the guard from vouching: a judgement of the prompt was late, found too many others waiting, or failed; one
of the answer failed; an edit was not confirmed; an adapter is not to be had; engine or store do not answer."""


Limit = Literal["requests", "tokens", "concurrent", "day"]
"""What a tenant may use: requests and tokens in a minute, requests at once, tokens in a day."""


class LetheError(Exception):
    """Base of all errors that users may see. The message is one plain sentence that says what to do."""

    status = 500
    code = "internal_error"
    kind = "server_error"
    headers: Mapping[str, str] = MappingProxyType({})  # beside those that every answer of the status has

    def __init__(self, message: str, *, param: str | None = None, details: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = dict(details or {})


class BadRequest(LetheError):
    status, code, kind = 400, "bad_request", "invalid_request_error"


class TooLarge(BadRequest):
    status, code = 413, "request_too_large"


class Unauthorized(LetheError):
    status, code, kind = 401, "invalid_api_key", "authentication_error"


class Forbidden(LetheError):
    status, code, kind = 403, "permission_denied", "permission_error"


class NotFound(LetheError):
    status, code, kind = 404, "not_found", "invalid_request_error"


class PreconditionFailed(LetheError):
    status, code, kind = 412, "precondition_failed", "invalid_request_error"


class TargetRefused(LetheError):
    status, code, kind = 422, "target_refused", "invalid_request_error"


class RateLimited(LetheError):
    """`limit` is what was used up. OpenAI's clients know type and code, and try again when `Retry-After` says so."""

    status = 429

    def __init__(self, message: str, limit: Limit, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.limit, self.headers = limit, headers
        used_up = limit == "day"
        self.kind = "insufficient_quota" if used_up else "tokens" if limit == "tokens" else "requests"
        self.code = "insufficient_quota" if used_up else "rate_limit_exceeded"


class ArtifactError(LetheError):
    status, code, kind = 422, "artifact_refused", "invalid_request_error"


class GuardUnavailable(LetheError):
    status, code, kind = 503, "guard_unavailable", "server_error"
    reason: Reason = "other"

    def __init__(self, message: str, *, reason: Reason = "other") -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(LetheError):
    code = "config_error"


class StartupError(LetheError):
    code = "startup_error"


def content_filter(message: str = "This input cannot be used here.", param: str = "input") -> BadRequest:
    """The 400 of a request that is answered with nothing."""
    error = BadRequest(message, param=param)
    error.code = "content_filter"
    return error
