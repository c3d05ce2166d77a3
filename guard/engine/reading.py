"""What the model will really read: token ids back to text, with the characters that each token covers.

Whatever text came with a request is not used: the ids are what the model gets. Tokens are joined as bytes, so
a character split over several tokens belongs to each of them, and ids that are no valid text cannot hide
others. Special tokens are part of the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from guard.errors import StartupError
from guard.types import Insertion, Message, Prompt, Span

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = 'The café "Σ東京" has 3 👩‍🚀 rockets,\n\tnaïve ﬁsh & more.'


def read(
    token_ids: Sequence[int],
    tokenizer: Any,
    *,
    messages: tuple[Message, ...] = (),
    asides: tuple[str, ...] = (),
) -> Prompt:
    """The prompt that `token_ids` are, with one character span per token.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        messages, asides: passed on.

    Raises:
        StartupError: the tokenizer's tokens cannot be turned into bytes; raised for any prompt, so found at
        start.
    """
    table = _table(tokenizer)
    pieces = [table[i] if 0 <= i < len(table) else b"" for i in token_ids]
    text, offsets = _decode(pieces)
    return Prompt(text, tuple(token_ids), offsets, messages, asides)


class Spelling:
    """The text of token ids that come one after the other, as far as its characters are whole."""

    def __init__(self, tokenizer: Any, *, skip_special: bool = True) -> None:
        self._table = _table(tokenizer)
        self._skipped = _special(tokenizer) if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: Sequence[int], *, ended: bool = False) -> str:
        """The characters that these ids complete; `ended`: no more come, broken ones are told as such."""
        known = (i for i in token_ids if 0 <= i < len(self._table) and i not in self._skipped)
        return self._decoder.decode(b"".join(self._table[i] for i in known), ended)


def encode(text: str, tokenizer: Any) -> list[int]:
    """Token ids of `text` alone; text that looks like a special token stays text."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


@dataclass(frozen=True, slots=True)
class Inserted:
    """Token ids after insertions, and where the tokens of the original prompt went."""

    token_ids: list[int]
    _starts: tuple[int, ...]
    _lengths: tuple[int, ...]

    def shift(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Positions in the original prompt -> positions in `token_ids`."""
        moved = np.asarray(positions, dtype=np.int64)
        shifts = [
            np.where(moved >= start, length, 0)
            for start, length in zip(self._starts, self._lengths, strict=True)
        ]
        return tuple((moved + sum(shifts)).tolist())


def insert(prompt: Prompt, insertions: Sequence[Insertion], tokenizer: Any) -> Inserted:
    """Put texts into the prompt at token boundaries: each before the token that holds its character.

    Nothing is put before a leading beginning-of-sequence token, which models expect to be first.
    """
    ends = np.asarray([span.end for span in prompt.offsets], dtype=np.int64)
    lead = int(bool(prompt.token_ids) and prompt.token_ids[0] == tokenizer.bos_token_id)
    placed = sorted(
        (
            (max(int(np.searchsorted(ends, i.at, side="right")), lead), encode(i.text, tokenizer))
            for i in insertions
        ),
        key=lambda pair: pair[0],
    )
    ids: list[int] = []
    done = 0
    for start, tokens in placed:
        ids += [*prompt.token_ids[done:start], *tokens]
        done = start
    ids += prompt.token_ids[done:]
    return Inserted(ids, tuple(start for start, _ in placed), tuple(len(tokens) for _, tokens in placed))


def _decode(pieces: list[bytes]) -> tuple[str, tuple[Span, ...]]:
    """Text of the joined bytes and, per piece, the characters that it shares bytes with."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    # Bytes per character; a byte that is no text became one lone surrogate.
    widths = 1 + (points >= 0x80) + (points >= 0x800).astype(np.int64) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1
    firsts = np.concatenate(([0], np.cumsum(widths)))[:-1]
    lengths = np.fromiter((len(p) for p in pieces), dtype=np.int64, count=len(pieces))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    a = np.searchsorted(firsts, starts, side="right") - 1
    b = np.where(lengths > 0, np.searchsorted(firsts, ends - 1, side="right"), a)
    spans = tuple(Span(max(int(s), 0), max(int(e), 0)) for s, e in zip(a, b, strict=True))
    return re.sub("[\udc80-\udcff]", "\ufffd", text), spans


@lru_cache(maxsize=8)
def _table(tokenizer: Any) -> list[bytes]:
    """The bytes of every token id, checked against the tokenizer's own decoding of a hard text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StartupError("The guard needs a fast tokenizer (one with a tokenizer.json).")
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder"))
    to_bytes = _byte_level if '"ByteLevel"' in decoder else _plain
    added = {i: token.content.encode() for i, token in tokenizer.added_tokens_decoder.items()}
    vocabulary = {i: to_bytes(token) for token, i in tokenizer.get_vocab().items()} | added
    table = [vocabulary.get(i, b"") for i in range(max(vocabulary) + 1)]
    ids = tokenizer.encode(_PROBE, add_special_tokens=False)
    ours = _decode([table[i] for i in ids])[0]
    theirs = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if ours.removeprefix(" ") != theirs.removeprefix(" "):
        raise StartupError("The guard cannot tell which characters this model's tokens stand for.")
    return table


@lru_cache(maxsize=8)
def _special(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids)


def _plain(token: str) -> bytes:
    """SentencePiece: a space is written as a lower block, and unknown characters as bytes."""
    byte = _BYTE.fullmatch(token)
    return (
        bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode("utf-8", "surrogatepass")
    )


def _byte_level(token: str) -> bytes:
    """GPT-2's byte-level alphabet, in which every byte is one printable character."""
    return b"".join(_ALPHABET.get(c) or c.encode() for c in token)


def _alphabet() -> dict[str, bytes]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): bytes([b]) for b in printable} | {chr(256 + i): bytes([b]) for i, b in enumerate(others)}


_ALPHABET = _alphabet()
