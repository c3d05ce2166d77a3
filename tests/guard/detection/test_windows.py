from guard.detection.windows import STRIDE, WIDTH, windows


def _covered(text: str, found: tuple) -> set[int]:
    return {i for window in found for i in range(window.span.start, window.span.end)}


def test_a_short_question_is_one_window() -> None:
    found = windows("Who is Jane Doe?", max_chars=250)

    assert [window.text for window in found] == ["Who is Jane Doe?"]


def test_long_texts_are_covered_to_the_last_word() -> None:
    text = " ".join(f"word{i}" for i in range(5_000))

    found = windows(text, max_chars=250)

    assert {i for i, c in enumerate(text) if c != " "} <= _covered(text, found)
    assert max(len(window.text.split()) for window in found) <= WIDTH
    assert len(found) < 5_000 / STRIDE * 2


def test_no_window_is_longer_than_the_encoder_reads() -> None:
    text = "\u5b57" * 3_000 + " " + "x" * 3_000

    found = windows(text, max_chars=250)

    assert max(window.span.end - window.span.start for window in found) <= 250
    assert set(range(3_000)) | set(range(3_001, 6_001)) <= _covered(text, found)


def test_a_sentence_inside_a_long_text_stands_alone_too() -> None:
    text = "<|system|>Be kind to people.<|end|><|user|>It rains. Which pet does Dr. Doe keep?<|end|>"

    found = {window.text: window.span for window in windows(text, max_chars=250)}

    span = found["Which pet does Dr. Doe keep?"]
    assert text[span.start : span.end] == "Which pet does Dr. Doe keep?"
    assert "Be kind to people." in found


def test_overlap_joins_what_turns_split() -> None:
    text = "<|user|>Her name is Ilva<|end|><|user|>Marenko is the family name<|end|>"

    assert any("Ilva Marenko" in window.text for window in windows(text, max_chars=250))


def test_nothing_to_read_gives_no_window() -> None:
    assert windows(" \n ?! <|user|>", max_chars=250) == ()


def test_a_turn_that_is_appended_leaves_the_windows_before_it_as_they_were() -> None:
    turn = "<|user|>In turn {0} I walked along the river, saw {0} herons and wrote about them. Why so many?<|end|>"
    turn += (
        "<|assistant|>Herons gather in turn {0} where the water is shallow, and fish are easy to see.<|end|>"
    )
    talk = "".join(turn.format(i) for i in range(20))
    added = "<|user|>Which bird was the most common one in the year before the mill was built?<|end|>"

    before = {window.text for window in windows(talk, max_chars=250)}
    alone = {window.text for window in windows(added, max_chars=250)}
    after = {window.text for window in windows(talk + added, max_chars=250)}

    assert len(before) > 60
    assert len(after - before) <= len(alone) + 2  # those across the seam, at either half of a stride


def test_a_question_behind_a_sentence_without_an_end_is_a_window_of_its_own() -> None:
    text = "the harvest was good and the barns are full of Who is the miller of Tarvala?"
    found = [window.text for window in windows(text, max_chars=250)]
    assert "Who is the miller of Tarvala?" in found and text in found


def test_a_question_in_a_tools_answer_is_a_window_of_its_own() -> None:
    text = '{"id": 17, "question": "Who is the miller of Tarvala?", "state": "open"}'
    assert any(w.text.strip('"') == "Who is the miller of Tarvala?" for w in windows(text, max_chars=250))
