"""Where the words begin in letters that were written without spaces."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np

from guard.detection.background import background
from guard.detection.language import BOUNDARY, Characters, cost
from guard.detection.text import fold

_CAPITAL = re.compile(r"[a-z](?=[A-Z])")
_LONGEST = 24  # letters of a word


@cache
def _known() -> dict[str, float]:
    """Costs of the words of the background set, and "" that of all words that are not in it."""
    counts = Counter(word for prompt in background() for word in fold(prompt).text.split())
    once = sum(1 for count in counts.values() if count == 1)
    total = sum(counts.values()) + once
    costs = {word: -math.log(count / total) for word, count in counts.items()}
    costs[""] = -math.log(once / total)  # Good and Turing: as likely as those seen once
    return costs


def common(word: str) -> bool:
    """Whether at least one word in five hundred is this one."""
    return bool(word) and _known().get(word, math.inf) <= math.log(500)


def segmented(letters: str) -> set[int]:
    """Indices of `letters` where words begin, but the first: at capitals behind small letters, else those of the
    likeliest row of words, known ones by their frequency, others by their letters (Viterbi)."""
    capitals = [m.start() + 1 for m in _CAPITAL.finditer(letters)]
    edges = [0, *capitals, len(letters)]
    return {
        *capitals,
        *(at + start for start, end in pairwise(edges) for at in _likeliest(letters[start:end])),
    }


def _likeliest(letters: str) -> set[int]:
    text = letters.lower()
    known, new = _known(), _known()[""]
    begins, ends, inside = _letter_costs(text)
    best = [0.0]
    begin = [0]
    for end in range(1, len(text) + 1):
        least, at = math.inf, 0
        for start in range(max(0, end - _LONGEST), end):
            cost = known.get(text[start:end])
            if cost is None:  # a word that nobody has seen
                cost = new + begins[start] + max(inside[end] - inside[start + 2], 0.0) + ends[end]
            if best[start] + cost < least:
                least, at = best[start] + cost, start
        best.append(least)
        begin.append(at)
    cuts = set()
    at = begin[len(text)]
    while at > 0:
        cuts.add(at)
        at = begin[at]
    return cuts


def _letter_costs(text: str) -> tuple[list[float], list[float], list[float]]:
    """-log probabilities: [i] of the first two letters of a word that begins at i, [i] of a word's end before i, and
    [i] the sum over the letters before i, each after the two before it."""
    codes = Characters(text).codes()
    edge = np.full_like(codes, BOUNDARY)
    after = np.append(codes[1:], BOUNDARY)
    begins = cost(edge, edge, codes) + cost(edge, codes, after)
    ends = cost(np.insert(codes, 0, BOUNDARY)[:-1], codes, edge)
    inside = np.concatenate([[0.0, 0.0, 0.0], np.cumsum(cost(codes[:-2], codes[1:-1], codes[2:]))])
    return begins.tolist(), [math.inf, *ends.tolist()], [*inside.tolist(), inside[-1]]
