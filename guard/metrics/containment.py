"""Whether an answer states a value or names an entity, whatever the wording around it.

Definition: both texts are NFKC-normalised and case-folded, everything but letters and digits becomes one
blank, and the value must stand in the answer as whole words. ROUGE gives credit for the frame of a sentence
("The author was born in ..."); containment gives credit for the fact alone, which makes it the stricter
test of whether something is still known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_BREAK = re.compile(r"[\W_]+")


def plain_words(text: str) -> str:
    """Letters and digits of `text`, lower case, single blanks between words and one at either end."""
    return f" {_BREAK.sub(' ', unicodedata.normalize('NFKC', text).casefold()).strip()} "


def contains(value: str, answer: str) -> bool:
    """Whether `value` stands in `answer` as whole words. A value without letters or digits is in nothing."""
    wanted = plain_words(value)
    return bool(wanted.strip()) and wanted in plain_words(answer)


def named_in(names: Iterable[str], answer: str, *, excluding: str = "") -> tuple[str, ...]:
    """The `names` that `answer` mentions and the text `excluding` (the prompt) does not."""
    said, given = plain_words(answer), plain_words(excluding)
    return tuple(
        name for name in names if (word := plain_words(name)).strip() and word in said and word not in given
    )
