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

    found = [(h.text, h.span) for h in hidden(text)]

    assert any(read in decoded for decoded, _ in found)
    assert all(0 <= span.start < span.end <= len(text) for _, span in found)


def test_the_place_of_a_code_is_known() -> None:
    code = base64.b64encode(SECRET.encode()).decode()
    assert [h.span for h in hidden(f"x {code} y") if h.text == SECRET] == [Span(2, 2 + len(code))]


@pytest.mark.parametrize(
    "text", ["What is the capital of France?", "internationalisation of supercalifragilistic words"]
)
def test_ordinary_text_hides_nothing(text: str) -> None:
    assert list(hidden(text)) == []
