"""What is trained on and what is judged on. No wording that a candidate is judged by was read by a trainer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from classifiers.data import Example, plain, split
from classifiers.edited import Reader, Speaker
from classifiers.surrogate import answered
from guard.detection.background import background
from guard.detection.encoder import Encoder
from guard.errors import BadRequest
from guard.metrics.refusal import is_refusal

WORDINGS = "The candidates are judged by wordings that no trainer read, of facts that trainers read in other wordings."
FACTS = (
    "The examples have one wording of each fact, so the candidates are judged by facts that no trainer read. Give "
    "several wordings of each (`lethe data` writes them) to judge by new wordings of what is to be forgotten."
)
ALONE = "There is one example only, so the candidates are judged by what they were trained on."
GIVEN = "The candidates are judged by the examples that were given for it (--holdout)."
NO_NEIGHBOURS = (
    "There are no retain examples whose answers say something, so harm to neighbours is not known."
)
INVENTED = "The retain examples hold no refusals; those that the model gives about invented names were added."
EVERYDAY = "There are few retain examples; everyday questions with the model's own answers were added."


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much at most: held-out questions about the target, near it, and everyday questions that are added where there
    are fewer retain examples; and the share of the wordings (or facts) that is held out."""

    judged: int
    near: int
    everyday: int
    share: float
    seed: int


@dataclass(frozen=True, slots=True)
class Material:
    """`forget` and `retain` are trained on, `judged` and `near` judged by; all have answers. `notes` say in sentences
    how they came about, without any of their text."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    judged: tuple[Example, ...]
    near: tuple[Example, ...]
    notes: tuple[str, ...]


def gather(
    forget: Sequence[Example],
    retain: Sequence[Example],
    holdout: Sequence[Example],
    speaker: Speaker,
    reader: Reader,
    encoder: Encoder,
    amounts: Amounts,
    *,
    invent: bool,
) -> Material:
    """What is missing is asked of the model: answers; answers to everyday questions where there are few retain
    examples; and refusals, where these hold none and invented names may be asked for (`invent`).

    Raises:
        BadRequest: the model says nothing to any forget example.
    """
    own, given, kept = (answered(speaker, reader, examples) for examples in (forget, holdout, retain))
    if not own:
        raise BadRequest("The model says nothing to any of the forget examples; give their answers.")
    rng = random.Random(amounts.seed)
    trained, judged, note = (own, given, GIVEN) if given else _apart(own, amounts.share, amounts.seed)
    notes = [note]
    near = _near(kept, own, encoder, amounts.near)
    if not near:
        notes.append(NO_NEIGHBOURS)
    sources = {example.origin for example in near}
    rest = [example for example in kept if example.origin not in sources]
    if invent and not any(is_refusal(example.answer) for example in rest):
        strangers = [replace(reader.about_somebody(e, rng), answer="") for e in trained]
        refusals = [e for e in _new(answered(speaker, reader, strangers), rest) if is_refusal(e.answer)]
        rest += refusals
        notes += [INVENTED] if refusals else []
    if (missing := amounts.everyday - len(kept)) > 0:
        everyday = [Example((("user", text),)) for text in rng.sample(background(), missing)]
        rest += _new(answered(speaker, reader, everyday), [*rest, *own])
        notes.append(EVERYDAY)
    return Material(
        tuple(trained), tuple(rest), tuple(_some(judged, amounts.judged, rng)), tuple(near), tuple(notes)
    )


def _apart(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example], str]:
    """Trained on, judged by, and the note on it."""
    rng = random.Random(seed)
    held: set[int] = set()
    for wordings in _by_source(examples).values():
        if len(wordings) > 1:
            count = min(max(round(share * len(wordings)), 1), len(wordings) - 1)
            held.update(rng.sample(wordings, count))
    if held:
        kept = [example for i, example in enumerate(examples) if i not in held]
        return kept, [examples[i] for i in sorted(held)], WORDINGS
    if len(examples) > 1:
        trained, judged = split(examples, share, seed)
        return list(trained), list(judged), FACTS
    return list(examples), list(examples), ALONE


def _by_source(examples: Sequence[Example]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        found.setdefault(example.origin, []).append(i)
    return found


def _near(retain: Sequence[Example], forget: Sequence[Example], encoder: Encoder, most: int) -> list[Example]:
    """Those retain examples that ask most nearly what forget examples ask, as the gate's encoder sees it, and are
    therefore the ones that it could take for them. Of the sources every second one, nearest first: the others stay for
    training."""
    known = [example for example in retain if not is_refusal(example.answer)]
    if not known:
        return []
    asked, own = (encoder.encode([e.turns[-1][1] for e in examples]) for examples in (known, forget))
    nearness = (asked @ own.T).max(axis=1)
    order = sorted(range(len(known)), key=lambda i: -nearness[i])
    sources = list(dict.fromkeys(known[i].origin for i in order))[::2]
    chosen = [i for i in order if known[i].origin in sources]
    return [known[i] for i in chosen[:most]]


def _new(examples: Iterable[Example], known: Sequence[Example]) -> list[Example]:
    """Those that ask what no other one asks."""
    asked = {plain(example.turns[-1][1]) for example in known}
    found: dict[str, Example] = {}
    for example in examples:
        if (text := plain(example.turns[-1][1])) not in asked:
            found.setdefault(text, example)
    return list(found.values())


def _some(examples: Sequence[Example], most: int, rng: random.Random) -> list[Example]:
    """At most so many, in their order."""
    chosen = sorted(rng.sample(range(len(examples)), min(most, len(examples))))
    return [examples[i] for i in chosen]
