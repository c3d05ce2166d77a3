"""Reads a conversation as its reader does: what one turn leaves open, another one says.

The rendered prompt is judged as it stands. Beside it stand texts that are put together from its parts, so that a
subject is found which no stretch of the prompt holds by itself: a name that is given in parts, a description that
goes on behind somebody else's turn, a question under a name that an earlier turn has made up. Each part of such a
text knows its place in the prompt, and there methods act.

What is made for a turn depends on this turn and on those before it (`Talk`). A later request of the same conversation
goes on behind the turns that were heard before: only the last ones cost anything.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Literal

from guard.detection.background import background
from guard.detection.text import MARKERS, neutralise
from guard.detection.windows import WIDTH, sentences
from guard.turns import located
from guard.types import Prompt, Span

TURNS = 64  # the last ones, in which names are looked for that are given in parts or made up
_EDGE = 4  # sentences at either end of a turn that are looked into for names, given in parts or made up
_ASIDES, _ASIDE_CHARS = 256, 200
_PARTS, _PART_WORDS = 4, 4  # of a name, and of one part of it
_DEFINITIONS = 16  # made-up names that are followed
_SHORTEST = 3  # words of a description, and of a stretch between messages that is not the template's own
_SEVERAL = 3  # background prompts that hold an everyday word
_GAP = 2  # characters between two words of one stretch

Form = Literal["text", "name", "letters"]

_NAMING = frozenset(
    """
    name names named naming first last second third fourth middle family given christian surname forename
    patronymic maiden initial initials full real whole part parts piece half word words letter letters syllable
    call called calls spell spelled spelt spelling begin begins beginning start starts starting end ends ending
    follow follows followed following next then finally put join add append behind after before together combine
    remember keep mind note noted person somebody someone guy man woman author ok okay yes understood
    he him his she her hers they them their it its we us our you your this that these those there here
    who whom whose what which would could should
    """.split()  # noqa: SIM905 - as a list it would be thirty lines
)
"""What people say around a name that they give in parts, and pronouns; nothing of it belongs to the name."""

_CUES = frozenset(
    ("name", "names", "named", "called", "calls", "surname", "forename", "spelled", "spelt", "letters")
)
"""Between two parts of a name in one sentence stands one of these; without it, they are two names."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019.-][^\W_]+)*")
_SPACED = re.compile(r"\S{1,48}")
_QUOTED = r"[\"\u201c\u2018'][^\"\u201d\u2019']{1,40}[\"\u201d\u2019']"
_NEW = rf"(?P<new>{_QUOTED}|(?:the\s)?[A-Z][\w-]*(?:\s(?:[A-Z][\w-]*|\d+)){{0,2}}|[^\W_][\w-]{{0,30}})"
_DENOTES = r"(?:means?|denotes?|represents?|designates?|stands?\sfor|refers?\sto|is\sshort\sfor|:?=)"
_IS = rf"(?:is|are|be|{_DENOTES})"
_MARKS = "\"'\u201c\u201d\u2018\u2019"
_NAME = re.compile(rf"[^\s{_MARKS}]+")
_STOP = r"[.!?,;:\s]*$"
_DEFINED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(?i:let|say|suppose|assume)\s(?:that\s)?{_NEW}\s{_IS}\s(?P<old>.+?){_STOP}",
        rf"\b(?i:use|write|take)\s{_NEW}\s(?:as\s[\w\s]{{0,30}}?)?(?:for|instead\sof)\s(?P<old>.+?){_STOP}",
        rf"\brefer(?:red)?\sto\s(?P<old>.+?)\sas\s{_NEW}\W*$",
        rf"(?P<old>.+?)\s(?:is|are|(?:will|shall)\sbe)\s(?:called|named|known\sas|referred\sto\sas)\s{_NEW}\W*$",
        rf"(?<!\w){_NEW}\s(?:(?:here|now|will|shall|always)\s)*{_DENOTES}\s(?P<old>.+?){_STOP}",
        rf"^\W*{_NEW}\s(?:(?:here|now|will|shall|always)\s)*{_IS}\s(?P<old>.+?){_STOP}",
        rf"\b(?i:call|name|label|dub|nickname)\s(?P<old>.+?),?\s(?:as\s|by\sthe\sname\s)?{_NEW}\W*$",
    )
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What `role` says ("" where nobody knows who does) stands at `span` of the prompt."""

    role: str
    span: Span


Words = tuple[tuple[str, Span | None], ...]
"""Words with their places in the prompt (None: they have none there)."""


@dataclass(frozen=True)
class Joined:
    """A text put together from `words`, with `glue` between them.

    A `text` is judged by its meaning at `windows`, and a name in it only where it goes from one stretch of the
    prompt to another: what else it holds is judged there. A `name` is one only as a whole. `letters` were given
    one by one."""

    words: Words
    form: Form
    windows: tuple[Span, ...] = ()
    glue: str = " "

    @cached_property
    def text(self) -> str:
        return self.glue.join(word for word, _ in self.words)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each word begins in `text`."""
        lengths = (len(word) + len(self.glue) for word, _ in self.words[:-1])
        return tuple(accumulate(lengths, initial=0))

    @cached_property
    def seams(self) -> tuple[int, ...]:
        """Where in `text` a word begins that does not go on where the one before it ends."""
        places = [place for _, place in self.words]
        return tuple(
            at
            for (one, other), at in zip(pairwise(places), self.starts[1:], strict=True)
            if not (one and other and 0 <= other.start - one.end <= _GAP)
        )

    def spans(self, start: int, end: int) -> tuple[Span, ...]:
        """The stretches of the prompt that the words in [start, end) stand at."""
        found: list[Span] = []
        for word, at in zip(self.words, self.starts, strict=True):
            place = word[1]
            if place is not None and at < end and start < at + len(word[0]):
                if found and 0 <= place.start - found[-1].end <= _GAP:
                    place = Span(found.pop().start, place.end)
                found.append(place)
        return tuple(found)


@dataclass(frozen=True)
class Story:
    """A prompt as a conversation: its text with the template's marks neutralised, its turns in order, the texts beside
    them, and whether the last turn is the begin of an answer, that the model is to go on with."""

    text: str
    turns: tuple[Turn, ...]
    asides: tuple[str, ...] = ()
    begun: bool = False

    @classmethod
    def of(cls, prompt: Prompt) -> Story:
        heard = turns(prompt)
        begun = bool(heard) and not prompt.text[heard[-1].span.end :].strip()
        return cls(neutralise(prompt.text), heard, prompt.asides, begun)

    @cached_property
    def others(self) -> list[int]:
        """Which turns are not the model's own."""
        last = len(self.turns) - 1
        return [
            i for i, turn in enumerate(self.turns) if turn.role != "assistant" or (self.begun and i == last)
        ]

    @cached_property
    def marks(self) -> tuple[bytes, ...]:
        """For each turn what is equal where everything up to its end is. That of the begin of an answer is its own:
        nobody knows whose words those of an answer are before it goes on."""
        found, read, others = hashlib.blake2b(digest_size=16), 0, set(self.others)
        marks = []
        for i, turn in enumerate(self.turns):
            who = (turn.role, i in others, turn.span.start, turn.span.end)
            part = f"{who}{self.text[read : turn.span.end]}"
            found.update(part.encode("utf-8", "surrogatepass"))
            read = turn.span.end
            marks.append(found.digest())
        return tuple(marks)


class Talk:
    """A conversation as far as it was heard, and what it takes to hear more: the texts to judge beside the prompt's
    own, no window of which has more than `max_chars` characters.

    What the model said is no part of what others say over several turns, but for an answer begun for it; names may be
    given by all together.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._heard = 0
        self._names = _Names(), _Names()  # what others than the model say, and what all say
        self._before: Words = ()
        self._known: dict[str, Words] = {}  # made-up names, and what they stand for

    def copy(self) -> Talk:
        other = copy(self)
        other._names = self._names[0].copy(), self._names[1].copy()
        other._known = dict(self._known)
        return other

    def hear(self, story: Story, *, names: bool = True) -> Iterator[Joined]:
        """The texts that the turns make which were not heard yet, each with those before it; where no `names` are
        looked for, only those that mean something."""
        count, others = len(story.turns), set(story.others)
        lately = set(story.others[-TURNS:])
        for i in range(self._heard, count):
            turn, near = story.turns[i], (i in lately, i >= count - TURNS)
            units = tuple(_units(story.text, turn)) if names and any(near) else ()
            threads = [names for names, wanted in zip(self._names, near, strict=True) if wanted]
            chains = dict.fromkeys(chain for names in threads for chain in names.add(units))
            yield from (Joined(chain, "name") for chain in chains)
            if i in others:
                yield from self._continued(story.text, turn)
            if i in lately:
                yield from self._renamed(story.text, turn)
        self._heard = count

    def rest(self, asides: Sequence[str]) -> Iterator[Joined]:
        """What only the whole conversation makes, with short texts beside it; nothing is heard behind this."""
        short = (aside for aside in asides[:_ASIDES] if len(aside) <= _ASIDE_CHARS)
        beside = tuple(tuple((word, None) for word in _WORD.findall(aside)) for aside in short)
        said, heard = self._names
        yield from (Joined(chain, "name") for chain in dict.fromkeys(said.add(beside)))
        spelt = dict.fromkeys(letters for names in (said, heard) if (letters := names.letters()))
        yield from (Joined(letters, "letters", glue="") for letters in spelt)

    def _continued(self, text: str, turn: Turn) -> Iterator[Joined]:
        """The turn with the end of what was said before it, as one window, and the sentences in that which go from
        turn to turn."""
        own, before = _placed(text, turn.span), self._before
        if before and own:
            kept = own[-max(WIDTH // 2, WIDTH - len(before)) :]
            yield _joined((*before[-(WIDTH - len(kept)) :], *kept), self._max_chars, across=True)
        self._before = (*before, *own)[-WIDTH:]

    def _renamed(self, text: str, turn: Turn) -> Iterator[Joined]:
        """Sentences with a made-up name, with what it stands for in its place."""
        for span in _edges(text, turn):
            sentence = text[span.start : span.end]
            for new, old in self._known.items():
                used = re.search(rf"(?<!\w){re.escape(new)}(?!\w)", sentence, re.IGNORECASE)
                if used:
                    yield _joined(_replaced(text, span, used.span(), old), self._max_chars)
                    break
            for new, old in _definitions(text, span):
                if len(self._known) < _DEFINITIONS:
                    self._known.setdefault(new, old)


def turns(prompt: Prompt) -> tuple[Turn, ...]:
    """The conversation in the order of the prompt: the messages that stand in it, and the stretches between
    them, as the chat template's markers divide them."""
    known = located(prompt.text, prompt.messages)
    least = _SHORTEST if known else 1
    found: list[Turn] = []
    cursor = 0
    for start, end, index in known:
        found.extend(_between(prompt.text, cursor, start, least))
        found.append(Turn(prompt.messages[index].role, Span(start, end)))
        cursor = end
    found.extend(_between(prompt.text, cursor, len(prompt.text), least))
    return tuple(found)


def _between(text: str, start: int, end: int, least: int) -> Iterator[Turn]:
    """The stretches between the markers in [start, end) of at least `least` words."""
    role = ""
    edges = [(start, start), *(m.span() for m in MARKERS.finditer(text, start, end)), (end, end)]
    for (opened, begin), (stop, _) in pairwise(edges):
        role = _role(text[opened:begin]) or role
        if sum(1 for _ in _WORD.finditer(text, begin, stop)) >= least:
            yield Turn(role, Span(begin, stop))


def _role(marker: str) -> str:
    if any(word in marker for word in ("assistant", "model", "[/INST")):
        return "assistant"
    return "user" if any(word in marker for word in ("user", "system", "tool", "[INST")) else ""


# --- a name in parts ---


class _Names:
    """Words that may be parts of a name, from sentence after sentence, as one name; the same for letters."""

    def __init__(self) -> None:
        self._open: dict[Keeps, list[tuple[int, Words]]] = {
            _proper: [],
            _unusual: [],
        }  # with how many parts they have
        self._letters: list[list[Words]] = []  # stretches of letters, of each turn

    def copy(self) -> _Names:
        other = _Names()
        other._open, other._letters = dict(self._open), list(self._letters)
        return other

    def add(self, units: Sequence[Words]) -> Iterator[Words]:
        """The names that end in these sentences: runs that follow each other over the edges of sentences, two to
        `_PARTS` of them; the last of a sentence, the only ones of those behind it, the first of one with several."""
        for keeps in self._open:
            for runs in (runs for unit in units for runs in _clauses(unit, keeps)):
                longer = [(parts + 1, (*chain, *runs[0])) for parts, chain in self._open[keeps]]
                yield from (chain for _, chain in longer)
                going = [(parts, chain) for parts, chain in longer if parts < _PARTS and len(runs) == 1]
                self._open[keeps] = [*going, (1, runs[-1])]
        spelt = [r for unit in units for kept, r in _runs(unit, _letters) if kept and not _article(r, unit)]
        self._letters = [*self._letters[1 - TURNS :], spelt]

    def letters(self) -> Words:
        """Those that were given one by one; none where they all stand together."""
        runs = [run for spelt in self._letters for run in spelt]
        if len(runs) < 2:
            return ()
        return tuple((re.sub(r"\W", "", word), place) for run in runs for word, place in run)


def _units(text: str, turn: Turn) -> Iterator[Words]:
    """The words of each sentence near the edges of a turn."""
    for span in _edges(text, turn):
        yield tuple((m.group(), Span(*m.span())) for m in _WORD.finditer(text, span.start, span.end))


def _edges(text: str, turn: Turn) -> list[Span]:
    """The first and the last sentences of a turn."""
    base = turn.span.start
    found = [Span(base + a, base + b) for a, b in sentences(text[base : turn.span.end])]
    return found if len(found) <= 2 * _EDGE else [*found[:_EDGE], *found[-_EDGE:]]


Keeps = Callable[[str, int, int], bool]
"""Whether a word may be a part of a name, given the word, its index in the sentence and the number of words."""


def _runs(unit: Words, keeps: Keeps) -> Iterator[tuple[bool, Words]]:
    """The stretches of words that are kept, and those that are not."""
    for kept, start, end in _kept(tuple(word for word, _ in unit), keeps):
        yield kept, unit[start:end]


@lru_cache(maxsize=8192)  # the sentences of earlier turns come again with every turn
def _kept(words: tuple[str, ...], keeps: Keeps) -> tuple[tuple[bool, int, int], ...]:
    """(whether they are kept, start, end) of stretches of words."""
    marks = [keeps(word, i, len(words)) for i, word in enumerate(words)]
    edges = [0, *(i for i in range(1, len(marks)) if marks[i] != marks[i - 1]), len(marks)]
    return tuple((marks[start], start, end) for start, end in pairwise(edges) if start < end)


def _clauses(unit: Words, keeps: Keeps) -> Iterator[list[Words]]:
    """The runs of a sentence that may be parts of a name, anew behind each word that speaks of names."""
    runs: list[Words] = []
    cue = False
    for kept, words in _runs(unit, keeps):
        if not kept:
            cue = cue or any(word.lower() in _CUES for word, _ in words)
        elif len(words) <= _PART_WORDS:
            if runs and cue:
                yield runs
                runs = []
            runs.append(words)
            cue = False
    if runs:
        yield runs


def _proper(word: str, index: int, count: int) -> bool:
    """A capital that is not there because a sentence begins."""
    return word[0].isupper() and word != "I" and (index > 0 or count == 1)


def _unusual(word: str, index: int, count: int) -> bool:
    return _proper(word, index, count) or word.lower() not in _everyday()


def _letters(word: str, index: int, count: int) -> bool:
    """One letter, or several with signs between them."""
    return all(len(letter) == 1 and letter.isalpha() for letter in re.split(r"\W", word))


def _article(run: Words, unit: Words) -> bool:
    """ "a" and "I" before other words are no letters of a name."""
    return len(run) == 1 and run[0][0] in ("a", "A", "I") and run[0] is not unit[-1]


@cache
def _everyday() -> frozenset[str]:
    """Words that several background prompts hold, and those that people say around a name."""
    counts = Counter(word for prompt in background() for word in set(_WORD.findall(prompt.lower())))
    return _NAMING.union(word for word, count in counts.items() if count >= _SEVERAL)


# --- what goes on behind another turn ---


def _placed(text: str, span: Span) -> Words:
    return tuple((m.group(), Span(*m.span())) for m in _SPACED.finditer(text, span.start, span.end))


# --- what is asked under another name ---


def _definitions(text: str, span: Span) -> Iterator[tuple[str, Words]]:
    """(new name, what it stands for). Of a name of several words, also its ends: where the description ends in
    a name too, nobody can tell where the new one begins."""
    sentence = text[span.start : span.end]
    match = _defining(sentence)
    if match is None:
        return
    names = _NAME.findall(match["new"])
    if not names or (len(names[-1]) > 1 and names[-1].lower() in _everyday()):
        return
    for word in _NAME.finditer(sentence, *match.span("new")):
        end = word.start() if match.start("old") < match.start("new") else match.end("old")
        end = min(end, match.end("old")) if word.start() == match.start("new") else end
        old = _placed(text, Span(span.start + match.start("old"), span.start + end))
        if len(old) >= _SHORTEST:
            yield sentence[word.start() : match.end("new")].strip(_MARKS), old


@lru_cache(maxsize=2048)
def _defining(sentence: str) -> re.Match[str] | None:
    return next((match for pattern in _DEFINED if (match := pattern.search(sentence))), None)


def _replaced(text: str, sentence: Span, used: tuple[int, int], old: Words) -> Words:
    start, end = sentence.start + used[0], sentence.start + used[1]
    before, after = _placed(text, Span(sentence.start, start)), _placed(text, Span(end, sentence.end))
    rest = max(WIDTH - len(before) - len(after), WIDTH // 2)
    return (*before, *old[:rest], *after)


def _joined(words: Words, max_chars: int, *, across: bool = False) -> Joined:
    """As one window of all words that fit, the last ones; `across`: and as the sentences that hold words of more
    than one stretch of the prompt."""
    size, first = -1, len(words)
    while first and size + 1 + len(words[first - 1][0]) <= max_chars:
        first -= 1
        size += 1 + len(words[first][0])
    joined = Joined(words[first:], "text")
    whole = Span(0, len(joined.text))
    pieces = [Span(a, b) for a, b in sentences(joined.text)] if across else []
    kept = [piece for piece in pieces if piece != whole and len(joined.spans(piece.start, piece.end)) > 1]
    return Joined(joined.words, "text", (whole, *kept))
