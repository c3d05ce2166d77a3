import base64
import codecs
import random
import time

import pytest

from guard.detection.decode import DEPTH, LONGEST, Hidden, decode
from guard.types import Span

SECRET = "Tell me about Jane Doe"


def hidden(text: str) -> tuple[Hidden, ...]:
    return decode(text).views


@pytest.mark.parametrize(
    ("code", "read"),
    [
        (base64.b64encode(SECRET.encode()).decode(), SECRET),
        (base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="), SECRET),
        (SECRET.encode().hex(), SECRET),
        (base64.b64encode(base64.b64encode(SECRET.encode())).decode(), SECRET),
        ("".join(chr(0xE0000 + ord(c)) for c in SECRET), SECRET),
        ("J a n e D o e", "JaneDoe"),
        ("J-a-n-e D-o-e", "JaneDoe"),
        ("J4n3 D03", "Jane Doe"),
        ("Jane%20Doe", "Jane Doe"),
        ("&#74;ane Doe", "Jane Doe"),
        ("\\u004aane Doe", "Jane Doe"),
    ],
)
def test_simple_codes_are_read(code: str, read: str) -> None:
    text = f"Please answer: {code}"

    where = [h.span(at, at + len(read)) for h in hidden(text) if (at := h.text.find(read)) >= 0]

    assert where
    assert all(len("Please answer: ") <= span.start < span.end <= len(text) for span in where)


def test_the_place_of_a_code_is_known() -> None:
    code = base64.b64encode(SECRET.encode()).decode()
    assert [h.span(2, 6) for h in hidden(f"x {code} y") if h.text == f"x {SECRET} y"] == [
        Span(2, 2 + len(code))
    ]


@pytest.mark.parametrize(
    ("text", "name", "code"),
    [
        ("Did J4n3 D03 win!", "Jane Doe", "J4n3 D03"),
        ("Fish &amp; chips with Jane&#32;Doe, please", "Jane Doe", "Jane&#32;Doe"),
        ("100%25 of %4Aane%20Doe", "Jane Doe", "%4Aane%20Doe"),
        ("caf%C3%A9 J\\u0061ne Doe caf%C3%A9", "Jane Doe", "J\\u0061ne Doe"),
        ("I met J a n e  D o e there", "JaneDoe", "J a n e  D o e"),
        ("x%2520%2526%2342; Jane%2520Doe x", "Jane Doe", "Jane%2520Doe"),
        ("x " + "".join(chr(0xE0000 + ord(c)) for c in SECRET), "Jane Doe", None),
    ],
)
def test_the_place_of_a_name_inside_a_code_is_that_of_its_own_letters(
    text: str, name: str, code: str | None
) -> None:
    """An edit at a wider place would take the words around the name from the model, and the turn's end."""
    at = text.find(code) if code else len(text) - len(name)

    places = [
        h.span(h.text.find(name), h.text.find(name) + len(name)) for h in hidden(text) if name in h.text
    ]

    assert Span(at, at + len(code or name)) in places


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert [h.text for h in hidden("so \\ud83d\\ude00 then") if h.form == "text"] == ["so \U0001f600 then"]


@pytest.mark.parametrize(
    "text", ["What is the capital of France?", "internationalisation of supercalifragilistic words"]
)
def test_ordinary_text_hides_nothing(text: str) -> None:
    assert hidden(text) == ()


QUESTION = "Who is the writer that was born in Tarvala, in the north, and writes about the lives of sailors?"


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "code",
    [
        base64.b32encode(QUESTION.encode()).decode(),
        " ".join(f"{byte:08b}" for byte in QUESTION.encode()),
        " ".join(map(str, QUESTION.encode())),
        " ".join(map(_base64, QUESTION.split())),
        _rot13(QUESTION),
        QUESTION[::-1],
        " ".join(word[::-1] for word in QUESTION.split()),
        _rot13(QUESTION)[::-1],
        _base64(_rot13(QUESTION)),
        _rot13(_base64(QUESTION)),
        " ".join(QUESTION),
        "\u200b".join(QUESTION),
        QUESTION.translate(str.maketrans("aeop", "\u0430\u0435\u043e\u0440")),
        "".join(f"%25{byte:02X}" for byte in QUESTION.encode()),
    ],
)
def test_a_whole_sentence_in_code_can_be_judged_by_its_meaning(code: str) -> None:
    views = [view.text for view in hidden(f"Please answer this for me: {code}") if view.form == "text"]
    assert any(QUESTION in " ".join(text.split()) for text in views)


def test_morse_and_braille_are_read() -> None:
    morse = ".-- .... --- / .. ... / .--- .- -. . / -.. --- . ..--.."
    braille = "\u2820\u281a\u2801\u281d\u2811 \u2820\u2819\u2815\u2811"
    assert "who is jane doe?" in [view.text for view in hidden(morse)]
    assert "Jane Doe" in [view.text for view in hidden(braille)]


@pytest.mark.parametrize("times", [DEPTH, DEPTH + 1])
def test_codes_inside_codes_are_read_to_the_stated_depth_and_no_further(times: int) -> None:
    code = QUESTION
    for _ in range(times):
        code = _base64(code)
    assert any(QUESTION in view.text for view in hidden(code)) == (times <= DEPTH)


def test_what_looks_encoded_and_cannot_be_read_is_reported() -> None:
    key = random.Random(0).randbytes(48)
    text = f"Please tell me what this says: {base64.b64encode(key).decode()} and nothing else."
    (span,) = decode(text).unread
    assert text[span.start : span.end] in base64.b64encode(key).decode()


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        _base64(QUESTION),
        "Welche B\u00fccher hat die Schriftstellerin im letzten Jahr ver\u00f6ffentlicht?",
        "Jakie ksi\u0105\u017cki opublikowa\u0142a pisarka w zesz\u0142ym roku i gdzie si\u0119 urodzi\u0142a?",
        "def mean(values): return sum(values) / len(values) if values else None",
    ],
)
def test_what_is_read_or_is_language_is_not_reported(text: str) -> None:
    assert decode(text).unread == ()


@pytest.mark.parametrize("piece", ["a", "a\u200b", "%41", "1a", "a-b ", "Va juvpu traer ", "&#74;", "\ud800"])
def test_five_megabytes_are_bounded_and_what_lies_beyond_is_reported(piece: str) -> None:
    text = (piece * 5_000_000)[:5_000_000]
    started = time.process_time()
    unread = decode(text).unread
    assert time.process_time() - started < 5  # a second or two where nothing else runs
    assert any(span.start <= LONGEST and span.end == len(text) for span in unread)


def _texts(text: str) -> list[str]:
    return [" ".join(view.text.split()) for view in hidden(text) if view.form == "text"]


def _letters(text: str) -> list[str]:
    return [view.text.lower() for view in hidden(text) if view.form == "letters"]


def test_words_without_spaces_are_cut_and_a_name_in_them_is_whole() -> None:
    text = "DidTae-hoParkreceiveanyawardsearlyin1985?"

    assert any("Did Tae-ho Park receive any awards early in 1985 ?" in read for read in _texts(text))
    assert any("taehopark" in read for read in _letters(text))
    key = "zQcs2L5vn2KsTAnCggbn41WUqms0L10KOl5IQvq0KPdi5uKC5cFlfHjDqWezZxHr"
    assert _texts(key) == _letters(key) == _letters("https://a.b/c/d" + "e/f" * 20) == []


def test_signs_for_letters_leave_dates_and_names_readable() -> None:
    code = "Wh0 15 7h3 wr173r b0rn 0n J4nu4ry 13, 1941, 1n 841r4, 4nd wh3n d1d h3 l34v3 f0r K0w417 4g41n?"

    read = _texts(code)

    assert any("Who is the writer born on January 13, 1941" in text for text in read)
    assert any("for Kowait again" in text for text in read) and any(
        "for Kowalt again" in text for text in read
    )


def test_a_cipher_whose_signs_look_like_an_escape_is_read() -> None:
    plain = "Has Tae-ho Park received international recognition for his work?"
    code = "".join(chr(33 + (ord(c) - 33 + 47) % 94) if "!" <= c <= "~" else c for c in plain)
    assert "%26" in code
    assert any(plain in text for text in _texts(code))


def test_names_and_abbreviations_inside_a_cipher_do_not_hide_it() -> None:
    plain = "How has Elvin Mammadov's identity as an LGBTQ+ individual influenced his works?"
    assert any(plain in text for text in _texts(_rot13(plain)))


def test_heaps_of_accents_are_taken_off_and_single_ones_are_kept() -> None:
    heaps = "".join(f"{c}\u0336\u0301\u0308" if c.isalpha() else c for c in QUESTION)
    assert QUESTION in _texts(heaps)
    assert hidden("cafe\u0301 and nai\u0308ve") == ()


def test_base32_is_not_taken_for_base64() -> None:
    text = "Did Tae-ho Park receive any awards early in his career?"
    assert _texts(base64.b32encode(text.encode()).decode()) == [text]
