import base64

import pytest

from guard.detection.decode import hidden
from guard.types import Span

SECRET = "Tell me about Jane Doe"


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
