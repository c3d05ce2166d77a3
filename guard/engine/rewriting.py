"""A request as the engine gets it: reserved keys gone, likelihoods withheld, blocks salted."""

from __future__ import annotations

import secrets
from copy import copy
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.crypto import Secrets
from guard.engine.edits import reserved
from guard.errors import BadRequest

_TRANSFER = ("kv_transfer_params", "ec_transfer_params")


class Salts:
    """Cache salts: edited and clean requests, and the requests of different tenants, never share blocks.

    Clients cannot make them: their own salts may not hold an `@`. The key is this process's own, because
    blocks do not outlive the engine.
    """

    def __init__(self) -> None:
        self._secrets = Secrets(secrets.token_bytes(32))
        self._epoch = 0

    def clean(self, client_salt: str | None, tenant: str | None) -> str | None:
        """The salt of a request that is not edited; without tenants, the client's own."""
        return client_salt if tenant is None else self._salt("clean", client_salt, tenant)

    def edited(self, client_salt: str | None, tenant: str | None, fingerprint: str) -> str:
        return self._salt("edited", client_salt, tenant, fingerprint, str(self._epoch))

    def renew(self) -> None:
        """Leave behind the blocks of all edited requests, after one of them could not be vouched for."""
        self._epoch += 1

    def _salt(self, purpose: str, *parts: str | None) -> str:
        tagged = [("none" if part is None else f"some:{part}") for part in parts]
        return f"@lethe:{self._secrets.digest(purpose, *tagged)}"


def token_ids(prompt: Any) -> list[int]:
    """The ids of a prompt that vLLM has rendered.

    Raises:
        BadRequest: a prompt that cannot be read: embeddings, a stream of inputs, an encoder-decoder pair.
    """
    if isinstance(prompt, dict) and prompt.get("type") in ("token", "multimodal"):
        return list(prompt["prompt_token_ids"])
    raise BadRequest("This kind of prompt cannot be checked; send text or token ids.", param="prompt")


def asides(params: SamplingParams) -> tuple[str, ...]:
    """Texts in the sampling parameters that steer the answer by other ways than the prompt."""
    found: list[str] = [*(params.stop or ()), *(params.bad_words or ())]
    if (wanted := params.structured_outputs) is not None:
        for value in (wanted.json, wanted.regex, wanted.choice, wanted.grammar, wanted.structural_tag):
            found += [str(v) for v in (value if isinstance(value, list) else [value]) if v is not None]
    return tuple(found)


def as_stream(params: SamplingParams) -> SamplingParams:
    """A copy that gives deltas and holds no key of ours, however the client put it there."""
    mine = copy(params)
    mine.output_kind = RequestOutputKind.DELTA
    if params.extra_args is not None:
        mine.extra_args = {k: v for k, v in params.extra_args.items() if not reserved(k)}
    return mine


def withholding(params: SamplingParams, *, likelihoods: bool = False) -> SamplingParams:
    """A copy for a matched request: no likelihoods, unless those of the answer may be told, and no say in which tokens
    the answer has."""
    mine = copy(params)
    if not likelihoods:
        mine.logprobs = mine.logprob_token_ids = None
    mine.prompt_logprobs = mine.prompt_logprob_token_ids = mine.prompt_logprob_start = None
    mine.logit_bias = mine.allowed_token_ids = None
    mine.bad_words = []
    mine.trace_decode_token_ids = None
    mine.extra_args = {k: v for k, v in (params.extra_args or {}).items() if k not in _TRANSFER}
    return mine


def dictated(params: SamplingParams) -> bool:
    """Whether the client says what the answer may be. It would be told how likely a text of its choice is, which in an
    answer that names the target tells whether it was learned."""
    return params.structured_outputs is not None


def transfers(params: SamplingParams) -> bool:
    """Whether blocks of this request go to other engines, or come from them."""
    return any((params.extra_args or {}).get(key) for key in _TRANSFER)


def beam_step(params: SamplingParams) -> bool:
    """Whether this is a step of vLLM's beam search, which calls the engine for every token of every beam."""
    return (
        params.output_kind is RequestOutputKind.CUMULATIVE
        and not params.detokenize
        and params.max_tokens == 1
    )
