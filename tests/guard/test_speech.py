"""An answer on its way out, judged by its meaning: windows lie where they lie however the text comes, every word is
judged in one that ends far enough behind it, and nothing of a window that is a hit has left."""

import random

import pytest

from guard.detection.literals import Found, Hit, Literals
from guard.errors import GuardUnavailable
from guard.speech import Extent, Speech
from tests.guard.detection.test_literals import at_once, target

EXTENT = Extent(window=6, lookahead=2)


class Listener:
    """Forbids windows that hold `word`; keeps what it was asked."""

    def __init__(self, word=None, listens=True):
        self.word, self.listens, self.seen = word, listens, []

    async def __call__(self, text, windows):
        self.seen += [text[w.start : w.end] for w in windows]
        return [self._hit(w) if self.word in text[w.start : w.end].split() else None for w in windows]

    def _hit(self, window):
        return Hit("t", window.start, window.end, named=False, meant=True)


def passes(text, begun, ended):
    return Found(len(text))


def spoken(pieces, judge, look=passes, extent=EXTENT):
    speech = Speech(look, judge, extent)
    out = [at_once(speech.say(piece, ended=i == len(pieces) - 1)) for i, piece in enumerate(pieces)]
    return out, speech


WORDS = [f"w{i}" for i in range(20)]
TOKENS = [word if i == 0 else " " + word for i, word in enumerate(WORDS)]


def test_a_word_leaves_when_a_window_that_ends_far_enough_behind_it_was_judged():
    judge = Listener()
    out, _ = spoken(TOKENS, judge)
    assert "".join(out) == " ".join(WORDS)
    for i in range(len(TOKENS) - 1):
        left = "".join(out[: i + 1]).split()
        # the last word may still become longer, so i words are complete
        assert len(left) == max(i // EXTENT.lookahead * EXTENT.lookahead - EXTENT.lookahead, 0)
    for i, word in enumerate(WORDS[: -EXTENT.lookahead]):
        assert any(word in seen.split()[: -EXTENT.lookahead] for seen in judge.seen), i
    assert all(len(seen.split()) <= EXTENT.window for seen in judge.seen)


def test_one_judgement_per_lookahead_and_one_at_the_end():
    judge = Listener()
    spoken(TOKENS[:19], judge)
    assert len(judge.seen) == 19 // EXTENT.lookahead + 1


def test_without_anybody_who_listens_nothing_waits():
    judge = Listener(listens=False)
    out, _ = spoken(TOKENS, judge)
    assert out == TOKENS and judge.seen == []


def test_who_begins_to_listen_during_an_answer_judges_what_has_not_left():
    judge = Listener("w9", listens=False)
    speech = Speech(passes, judge, EXTENT)
    left = [at_once(speech.say(token)) for token in TOKENS[:5]]
    assert left == TOKENS[:5]
    judge.listens = True
    for token in TOKENS[5:]:
        left.append(at_once(speech.say(token)))
    assert speech.hit is not None and "w9" not in "".join(left)


@pytest.mark.parametrize("word", ["w0", "w5", "w12", "w19"])
def test_nothing_of_what_is_found_leaves_and_pieces_do_not_matter(word):
    rng = random.Random(3)
    text = " ".join(WORDS)
    whole, speech = spoken([text], Listener(word))
    assert word not in whole[0].split() and speech.hit.meant
    for _ in range(200):
        pieces, at = [], 0
        while at < len(text):
            pieces.append(text[at : at + rng.randint(1, 9)])
            at += len(pieces[-1])
        out, again = spoken(pieces, Listener(word))
        assert "".join(out) == whole[0] and again.hit == speech.hit


def test_with_forbidden_texts_too_streams_are_whole_answers_over_random_splits():
    rng = random.Random(11)
    literals = Literals([target("jane", "w7 w8", answers=("w14 w15 w16",))])

    def look(text, begun, ended):
        return literals.look(text, begun, lambda *_: True, ended=ended)

    hits = set()
    for case in range(500):
        said = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))] + rng.choice(
            [[], WORDS[7:9], WORDS[13:17]]
        )
        text = rng.choice([" ", "  ", "\n"]).join(said) + rng.choice(["", "."])
        extent = Extent(rng.choice([4, 6, 9]), 2)
        whole, speech = spoken([text], Listener("w3"), look, extent)
        pieces, at = [], 0
        while at < len(text):
            pieces.append(text[at : at + rng.randint(1, 5)])
            at += len(pieces[-1])
        out, again = spoken(pieces, Listener("w3"), look, extent)
        assert "".join(out) == whole[0], (case, pieces)
        assert (again.hit and again.hit.meant) == (speech.hit and speech.hit.meant)
        assert "w3" not in whole[0].split() and not literals.said_in(whole[0])
        hits.add(speech.hit and (speech.hit.meant, speech.hit.named))
    assert hits == {None, (True, False), (False, True), (False, False)}


def test_an_answer_that_goes_on_otherwise_is_judged_again_from_there():
    speech = Speech(passes, Listener("bad"), EXTENT)
    out = "".join(at_once(speech.say(token)) for token in [*TOKENS[:7], " bad", *TOKENS[7:10]])
    assert speech.hit is not None and out == " ".join(WORDS[:4])
    speech.resume(len(out))
    out += "".join(at_once(speech.say(token)) for token in [*TOKENS[4:6], " bad", *TOKENS[6:9]])
    assert speech.hit is not None and "bad" not in out
    speech.resume(len(out))
    out += at_once(speech.say("  fine.", ended=True))
    assert speech.hit is None and out.endswith("fine.")


def test_what_cannot_be_judged_does_not_leave():
    class Broken(Listener):
        async def __call__(self, text, windows):
            raise RuntimeError("encoder")

    speech = Speech(passes, Broken(), EXTENT)
    with pytest.raises(GuardUnavailable) as failed:
        at_once(speech.say(" ".join(WORDS)))
    assert failed.value.reason == "output"
    assert speech.left == 0
