"""The guard's errors in classes that vLLM's handlers also understand.

Raised from `generate`, an exception crosses vLLM's own handlers first: some turn it into a response by its
class (Messages, streams), some only know their own `GenerationError` (Responses streams), others let it pass.
These classes are both ours and vLLM's, so every route answers with the right status even where nobody maps
it.
"""

from __future__ import annotations

from vllm.exceptions import RetryableRequestError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from guard.errors import BadRequest, GuardUnavailable, LetheError


class Unavailable(GuardUnavailable, RetryableRequestError):
    """503 on every route."""

    def __init__(self, error: LetheError) -> None:
        RetryableRequestError.__init__(self, error.message)
        self.message, self.param, self.details = error.message, error.param, error.details
        self.reason = error.reason if isinstance(error, GuardUnavailable) else "other"


class Refused(BadRequest, VLLMValidationError):
    """400 on every route; `code` is that of the error it stands for."""

    def __init__(self, error: LetheError) -> None:
        VLLMValidationError.__init__(self, error.message, parameter=error.param)
        self.message, self.param, self.details, self.code = (
            error.message,
            error.param,
            error.details,
            error.code,
        )

    def __str__(self) -> str:
        return self.message  # vLLM's would add the parameter to it


class NotLive(EngineDeadError):
    """What `/health` turns into 503; vLLM's own message speaks of a stack trace that there is not."""

    def __str__(self) -> str:
        return "The guard is not attached."


def on_the_wire(error: LetheError) -> LetheError:
    """`error` as a class that vLLM maps to the same status."""
    if isinstance(error, Unavailable | Refused):
        return error
    return Refused(error) if 400 <= error.status < 500 else Unavailable(error)
