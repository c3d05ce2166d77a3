"""A model's tokens as the text that they stand for, indexed by what they fold to.

Whether a token spells a word is decided on folded text, so it does not matter how a tokenizer splits it, with
which case, accents or punctuation it is written, or whether a blank goes before it. Tokens that hold a part of
a character are read together with the bytes that wait for them.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from guard.errors import ArtifactError
from guard.interventions.phrases import LAST

_PROBE = "Zoë's 12 cats, 日本 🙂!"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTINUES = range(0x80, 0xC0)
_LONGEST = 48  # characters of a token that are looked at


class Index:
    """Texts and the tokens that fold to each."""

    def __init__(self, pairs: Iterable[tuple[str, int]]) -> None:
        self._ids: dict[str, list[int]] = {}
        for text, token in pairs:
            self._ids.setdefault(text, []).append(token)
        self.texts = sorted(self._ids)
        self.longest = max(map(len, self.texts), default=0)

    def get(self, text: str) -> Sequence[int]:
        """The tokens of exactly that text."""
        return self._ids.get(text, ())

    def starting(self, text: str) -> Iterator[int]:
        """The tokens whose text begins with `text`."""
        first, end = bisect_left(self.texts, text), bisect_left(self.texts, text + LAST)
        for at in range(first, end):
            yield from self._ids[self.texts[at]]


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a text, up to its last special token: whole characters, and the bytes of one that is not
    whole yet. `cut` tells that it began earlier, maybe in the middle of a word."""

    text: str
    pending: bytes
    cut: bool


class Vocabulary:
    """The tokens of one tokenizer.

    `whole` has every token that begins with a whole character, by its folded text: a blank at either end
    stands for anything that ends a word. `fresh` has the words that tokens begin themselves, whatever was
    before.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        """`pieces[i]` are the bytes of token i, None for a special token."""
        self._pieces = pieces
        self._completing: dict[bytes, Index] = {}  # by one to three bytes that begin a character
        texts = [(fold_piece(_whole(piece)), i) for i, piece in enumerate(pieces) if piece]
        self.whole = Index((text, i) for text, i in texts if text.strip() and not self._continues(i))
        self.fresh = Index(
            (text[at + 1 :], i)
            for text, i in texts
            if not self._continues(i)
            for at in range(len(text) - 1)
            if text[at] == " "
        )

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Raises ArtifactError: the tokens of this kind of tokenizer cannot be read as bytes."""
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = {i: (t.content.encode(), t.special) for i, t in tokenizer.added_tokens_decoder.items()}
        probe = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        for read in (_byte_level, _with_blanks):
            spelt = [read(tokens[i]) for i in probe]
            if b"".join(spelt).decode("utf-8", "replace").strip() == _PROBE:
                return cls(
                    [
                        (None if added[i][1] else added[i][0]) if i in added else read(token or "")
                        for i, token in enumerate(tokens)
                    ]
                )
        raise ArtifactError("The model's tokenizer is of a kind whose tokens cannot be read as text.")

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Whole words of four letters or more, as single tokens with a blank before them."""
        return tuple(text for text in self.fresh.texts if len(text) >= 4 and text.isalpha())

    def tail(self, tokens: Sequence[int], cut: bool) -> Tail:
        """What `tokens` say, before which there are others if `cut`.

        Raises:
            ValueError: a token is not known yet: an engine that schedules ahead writes -1 for it.
        """
        found: list[bytes] = []
        for token in reversed(tokens):
            if token < 0:
                raise ValueError("a token that was generated is not known yet")
            piece = self._pieces[token] if token < len(self._pieces) else None
            if piece is None:
                cut = False
                break
            found.append(piece)
        said = b"".join(reversed(found))
        text, read = codecs.utf_8_decode(said, "ignore", False)
        return Tail(text, said[read:], cut)

    def completing(self, pending: bytes) -> Index:
        """The tokens that go on with a character of which the bytes `pending` are there, by what they make."""
        if pending not in self._completing:
            self._completing[pending] = self._made(pending)
        return self._completing[pending]

    def _made(self, pending: bytes) -> Index:
        made = ((_whole(pending + (self._pieces[i] or b"")), i) for i in self._fragments)
        return Index((folded, i) for text, i in made if (folded := fold_piece(text)).strip())

    @cached_property
    def _fragments(self) -> Collection[int]:
        return tuple(i for i in range(len(self._pieces)) if self._continues(i))

    def _continues(self, token: int) -> bool:
        piece = self._pieces[token]
        return piece is not None and piece[:1] != b"" and piece[0] in _CONTINUES


@lru_cache(maxsize=2)
def served(folder: str) -> Vocabulary:
    """The vocabulary of the model in `folder`; all tables of a worker share it."""
    from transformers import AutoTokenizer

    return Vocabulary.of(AutoTokenizer.from_pretrained(folder))


def fold_piece(text: str) -> str:
    """`text` as it folds in the middle of a text: a blank at an end means that it ends a word there."""
    from guard.detection.text import fold

    return fold(f"x{text[:_LONGEST]}x").text[1:-1]


def _whole(piece: bytes) -> str:
    """The whole characters of `piece`."""
    return codecs.utf_8_decode(piece, "ignore", False)[0]


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with: printable ones themselves, the rest from 256."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _byte_level(token: str) -> bytes:
    letters = _alphabet()
    if all(char in letters for char in token):
        return bytes(letters[char] for char in token)
    return token.encode()


def _with_blanks(token: str) -> bytes:
    """As SentencePiece writes them: a low line for a blank, and bytes in brackets."""
    if (byte := _BYTE.fullmatch(token)) is not None:
        return bytes([int(byte.group(1), 16)])
    return token.replace("\u2581", " ").encode()
