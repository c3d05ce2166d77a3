"""A target as training sees it: what it goes by, and its prompts as examples."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from classifiers.data import Example
from guard.errors import BadRequest
from guard.targets import TargetSpec


def read_target(text: str) -> TargetSpec:
    """From JSON. Reads of the admin API are targets too: what they add is left out.

    Raises:
        BadRequest: it is none.
    """
    try:
        row = json.loads(text)
        return TargetSpec.model_validate({name: row[name] for name in TargetSpec.model_fields if name in row})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(
            f"The target is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from None
    except (ValueError, TypeError):
        raise BadRequest("The target is not a JSON object; `lethe targets show` prints one.") from None


def asked_of(prompts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(Example((("user", prompt),)) for prompt in prompts)
