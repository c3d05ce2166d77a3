"""Registers a target with the detectors: measures its names, embeds its texts, sets its thresholds."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from guard.detection.background import background, background_hash
from guard.detection.background_vectors import Background, load_background
from guard.detection.base import WINDOW_CHARS, CompiledTarget, Exemption, Form
from guard.detection.calibrate import HIGHEST, Measured, Pool, of_evidence, of_similarity, report
from guard.detection.encoder import Encoder
from guard.detection.evidence import nats, probability, rate, terms
from guard.detection.exemption import exemption, named_retain
from guard.detection.gate import Gate
from guard.detection.material import Material, draft, gather, registered
from guard.detection.names import MISSPELT, forms
from guard.detection.swaps import mentions
from guard.detection.text import fold
from guard.detection.windows import windows
from guard.errors import TargetRefused
from guard.targets import TargetSpec
from guard.types import Message, Prompt

DEFAULT_FPR = 0.01
# Windows of an ordinary long prompt that differ: each can fire, and the promised rate is that of a prompt.
_WINDOWS = 10
_OTHERS = 2_000  # other targets whose texts are negatives; of more, a sample stands for all
_OTHERS_OF_DRAFT = 200  # what many targets have in common is known from a few, and looked up again in judging
_WARM_UP = "Who is Xyloth Vennery? Wh0 15 5h3? HowdoIboilanegginthemorningandwhatdoIneedforit? Jub vf Klybgu Iraarel?"
LIMIT = 0.01  # of the background set that a name, alias or example may match


class Compiler:
    """Compiles targets for one encoder; the vectors of the background are computed once and kept on disk."""

    def __init__(self, encoder: Encoder, cache_dir: Path) -> None:
        self._encoder = encoder
        self._cache_dir = cache_dir
        self._pool = Pool()

    def compile(
        self,
        target_id: str,
        version: int,
        spec: TargetSpec,
        others: Sequence[CompiledTarget] = (),
        *,
        force: bool = False,
        pooled: bool = False,
    ) -> CompiledTarget:
        """Everything that the detectors need of the target. `others` are the targets that are registered
        already; of very many, a sample that depends on the target alone is looked at.

        With `pooled`, thresholds are taken from what this compiler measured for targets with about as many texts,
        where it has measured enough of them; that costs the embedding of the registered texts, a tenth of the whole.
        The calibration then says `"pooled": True`.

        Raises:
            TargetRefused: a name, alias or example would match more than 1 % of the background set; `details`
                has `field`, `rate` and `limit`. Not with `force`.
        """
        started = time.perf_counter()
        names = self._names(spec, force)
        if not force:
            self._check_examples(spec)
        rng = random.Random(f"{target_id}\x00{spec.name}")
        most = _OTHERS_OF_DRAFT if pooled else _OTHERS
        sample = others if len(others) <= most else rng.sample(others, most)
        strangers = [o for o in sample if o.target_id != target_id and not _same(o, names)]
        of = terms(spec, strangers)
        texts = registered(spec, of, min(WINDOW_CHARS, self._encoder.max_tokens - 6))
        rates = _rates(spec, len(others))
        known = self._pool.like(texts.plain, rates) if pooled or not texts.texts else None
        if known is None:
            material = gather(spec, of, texts, self._encoder, strangers, self._background.vectors, rng)
        else:
            ceilings = known.ceilings_for(texts.plain)
            material = draft(of, texts, self._encoder, self._background.vectors, ceilings)
        similar, weighed = material.strata("meaning", rates), material.strata("evidence", rates)
        if known is None:
            self._pool.add(Measured(1, similar, weighed, material.ceilings, material.plain))
        else:
            similar, weighed = {**known.meaning, **similar}, {**known.evidence, **weighed}
        fixed = spec.threshold.score
        meant, told = material.own.meaning[material.plain], material.own.evidence
        lexical = fixed if fixed is not None else MISSPELT
        detectors: dict[str, Any] = {"lexical": {"threshold": lexical, "forms": len(names)}}
        semantic, least = HIGHEST if fixed is None else fixed, None
        if material.plain.any():
            semantic = fixed if fixed is not None else of_similarity(similar, meant)
            detectors["semantic"] = report(similar, meant, semantic)
        if len(told):
            least = nats(fixed) if fixed is not None else of_evidence(weighed)
            detectors["classifier"] = report(weighed, told, least, probability)
        return CompiledTarget(
            target_id=target_id,
            version=version,
            spec=spec,
            scope=spec.scope.frozen(),
            forms=names,
            terms=of,
            texts=material.own.texts,
            vectors=material.own.vectors,
            ceilings=material.ceilings,
            plain=material.plain,
            lexical_threshold=lexical,
            semantic_threshold=semantic,
            evidence_threshold=least,
            exemption=self._exemption(spec, material),
            calibration=self._report(detectors, started, known.targets if known else 0),
        )

    def _report(self, detectors: dict[str, Any], started: float, targets: int) -> dict[str, Any]:
        """`targets` are those whose scores were pooled."""
        pooled = {"pooled": True, "targets": targets} if targets else {}
        return pooled | {
            "encoder": {"name": self._encoder.name, "digest": self._encoder.digest},
            "background": {"hash": background_hash(), "n": len(background())},
            "detectors": detectors,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def prepare(self) -> None:
        """Do now what the first registration and the first prompt would wait for: the background's vectors, libraries
        to load, tables that decoding reads by. Of many first prompts at once, each would make the tables."""
        warm_up = TargetSpec(
            name="Xyloth Vennery", examples=("Who is Xyloth Vennery?", "Is Xyloth Vennery old?")
        )
        compiled = self.compile("warm-up", 0, warm_up, force=True)
        self._pool = Pool()
        said = Prompt(_WARM_UP, messages=(Message("user", _WARM_UP), Message("user", "Is she old?")))
        Gate(self._encoder, [compiled]).detect(said)

    def _names(self, spec: TargetSpec, force: bool) -> tuple[Form, ...]:
        """Ways of writing the names; derived ones that the background holds are left out, registered ones
        refused."""
        kept = []
        for form in forms(spec):
            measured = rate(form)
            if measured > LIMIT and form.score == 1.0 and not force:
                field = next(f for f, name in _fields(spec) if fold(name).text == form.text)
                raise _refused(field, measured)
            if form.score == 1.0 or measured == 0.0:
                kept.append(form)
        return tuple(kept)

    def _check_examples(self, spec: TargetSpec) -> None:
        """Refuse examples that ask what many people ask. One that names the target asks it of the target
        only."""
        unnamed = [
            (i, e) for i, e in enumerate(spec.examples) if not any(mentions(e, n) for n in spec.names())
        ]
        pieces = [(i, w.text) for i, e in unnamed for w in windows(e, max_chars=WINDOW_CHARS)]
        rates = self._background.rates([text for _, text in pieces], self._encoder)
        for i, _ in unnamed:
            # every window of a long example must be general before the example is
            measured = min((r for (of, _), r in zip(pieces, rates, strict=True) if of == i), default=0.0)
            if measured > LIMIT:
                raise _refused(f"examples[{i}]", measured)

    def _exemption(self, spec: TargetSpec, material: Material) -> Exemption | None:
        """From the retain prompts that hold the name; judged against the examples, or the description
        without."""
        named = named_retain(spec, material.negatives["retain"].texts)
        of_examples = material.sources < len(spec.examples)
        rows = of_examples if of_examples.any() else np.ones(len(material.sources), bool)
        return exemption(
            material.negatives["retain"].vectors[named],
            material.own.vectors[rows],
            material.sources[rows],
            self._background.same_sort,
        )

    @cached_property
    def _background(self) -> Background:
        return load_background(self._encoder, self._cache_dir)


def _rates(spec: TargetSpec, others: int) -> dict[str, float]:
    """How often texts of each stratum may match. A prompt about another target could match each of the rest, so
    all of them share the promised rate."""
    of_prompts = spec.threshold.fpr or DEFAULT_FPR
    return {
        "near": of_prompts,
        "others": of_prompts / (1 + others),
        "retain": of_prompts,
        "background": of_prompts / _WINDOWS,
    }


def _same(other: CompiledTarget, names: Sequence[Form]) -> bool:
    """Whether the other target goes by one of the names: then its texts are about the same thing."""
    return not {form.text for form in names if form.score == 1.0}.isdisjoint(
        form.text for form in other.forms if form.score == 1.0
    )


def _fields(spec: TargetSpec) -> list[tuple[str, str]]:
    """(field as an operator writes it, name)."""
    return [("name", spec.name), *((f"aliases[{i}]", alias) for i, alias in enumerate(spec.aliases))]


def _refused(field: str, measured: float) -> TargetRefused:
    return TargetRefused(
        f"{field} would match {measured:.1%} of ordinary prompts (at most {LIMIT:.0%} is allowed); make it "
        "more specific, or send force to register it all the same.",
        param=field,
        details={"field": field, "rate": round(measured, 4), "limit": LIMIT},
    )
