"""Attacks on what must not be known. The table is the only place that names them all.

`USUAL` are those that a run makes unless others are asked for: of the ways to write a prompt, a few that differ in what
a guard must do to read them."""

from __future__ import annotations

from evals.attacks.base import Attack, Case, run
from evals.attacks.oracles import ORACLES
from evals.attacks.prompts import DISGUISED, PROMPTS, TEMPLATES, jailbreaks

ATTACKS: dict[str, Attack] = {**PROMPTS, **DISGUISED, **ORACLES}
_WRITTEN = ("capitals", "full-width", "look-alike letters", "zero-width spaces", "leetspeak", "spaced letters",
            "base64", "ROT13", "reversed")  # fmt: skip
USUAL = (*PROMPTS, *(f"written: {name}" for name in _WRITTEN), *ORACLES)

__all__ = ["ATTACKS", "TEMPLATES", "USUAL", "Attack", "Case", "jailbreaks", "run"]
