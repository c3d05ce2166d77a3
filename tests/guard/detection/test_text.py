import random

import pytest

from guard.detection.text import _fold_any, beginnings, bounded, fold, neutralise, undecided
from guard.types import Span


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Jane Doe", "jane doe"),
        ("JANE\u00a0 DOE", "jane doe"),
        ("Ja\u200bne D\u2060oe", "jane doe"),
        ("J\u0430ne D\u043ee", "jane doe"),  # Cyrillic a and o
        ("\uff2a\uff41\uff4e\uff45 \uff24\uff4f\uff45", "jane doe"),  # full width
        ("Ja\U000e0061\U000e007fne Doe", "jane doe"),  # tag characters
        ("J\u0301ane D\u00f6e", "jane doe"),
        ("\U0001d57d\U0001d586\U0001d593\U0001d58a Doe", "rane doe"),  # mathematical Fraktur
        ("Jane Doe's", "jane doe"),
        ("Jane Doe\u2019s", "jane doe"),
        ("O'Brien", "obrien"),
        ("Ben-David", "ben david"),
        ("Ben\u2011David", "ben david"),
        ("Stra\u00dfe", "strasse"),
        ("\u0130stanbul", "istanbul"),
        ("\u1d0a\u1d00\u0274\u1d07", "jane"),  # small capitals
        ("\U0001f179\U0001f170\U0001f17d\U0001f174", "jane"),  # letters in boxes
        ("...", ""),
        ("", ""),
    ],
)
def test_folding_undoes_what_hides_a_name_from_a_search(written: str, read: str) -> None:
    assert fold(written).text == read


def test_every_character_folds() -> None:
    for code in range(0x110000):
        fold(chr(code))
    assert fold("\u00c6gir and \u0152uvre").text == "aegir and oeuvre"


def test_a_folded_piece_is_mapped_back_to_the_original_characters() -> None:
    text = "Was \u201eJa\u200bne  D\u00f6e\u2019s\u201c book?"
    folded = fold(text)
    at = folded.text.index("jane doe")

    span = folded.span(at, at + len("jane doe"))

    assert text[span.start : span.end] == "Ja\u200bne  D\u00f6e"


def test_one_character_that_folds_to_two_keeps_its_place() -> None:
    assert fold("a\u00dfb").span(1, 3) == Span(1, 2)


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"),
    [
        ("ann is here", 0, 3, True),
        ("annual", 0, 3, False),
        ("johann", 3, 6, False),
        ("\u738b\u5c0f\u660e\u662f\u8c01", 0, 3, True),  # no spaces between words
    ],
)
def test_word_boundaries(text: str, start: int, end: int, expected: bool) -> None:
    assert bounded(text, start, end) is expected


def test_template_markers_become_spaces_and_offsets_stay() -> None:
    text = "<|im_start|>user\nWho is Jane?<|im_end|>"

    plain = neutralise(text)

    assert len(plain) == len(text)
    assert plain.strip() == "Who is Jane?"
    assert plain.index("Who") == text.index("Who")


def test_only_known_markers_are_taken_for_markers() -> None:
    assert neutralise("<|Jane Doe|>") == "<|Jane Doe|>"


def texts(letters: str, count: int = 20_000) -> list[str]:
    rng = random.Random(7)
    return ["".join(rng.choices(letters, k=rng.randint(0, 9))) for _ in range(count)]


def test_plain_text_folds_as_any_other_does() -> None:
    assert all(fold(text) == _fold_any(text) for text in texts("aBz09 .,\n\t-_'`<\x1c\x00\u00e9~^"))


def test_pieces_begin_where_they_are_bounded_in_front() -> None:
    for text in texts("ab \n\u0e01\u4e00\u3040"):
        places = [i for i in range(len(text)) if text[i] != " " and bounded(text, i, len(text))]
        assert list(beginnings(text)) == places


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Jane's", 5),
        ("Jane\u2019s\u200b", 5),  # nothing that is seen follows
        ("Janes", 5),
        ("Jane's ", 7),
        ("Jane'st", 7),
        ("'s", 1),
        ("s", 1),
        ("", 0),
    ],
)
def test_a_possessive_ending_is_undecided_until_something_follows(text: str, place: int) -> None:
    assert undecided(text) == place
