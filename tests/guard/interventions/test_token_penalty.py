"""What must not be said is made unlikely however it is tokenised, and nothing else is touched."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from guard import artifacts, interventions
from guard.engine.edits import Order, fingerprint, from_wire, to_wire
from guard.engine.tables import Tables
from guard.errors import ArtifactError, BadRequest
from guard.interventions.base import Row
from guard.interventions.phrases import Phrases, everyday_words, forbidden, words_of
from guard.interventions.token_penalty import (
    FILE,
    Forbidden,
    TokenPenalty,
    TokenPenaltyParams,
    neighbours,
)
from guard.interventions.vocabulary import Vocabulary
from guard.targets import TargetSpec
from guard.types import Chosen, Edit, Match, Prompt, Span

MODEL = Path(__file__).parents[3] / "demo" / "models" / "full"
SPECIAL = 0
WORDS = [
    "In", " in", "The", " the", " a", " an", "I", " I", "anchor", " anchor", " anchors", "anch", "or", "chor",
    " Vintry", "Vintry", " vintry", " VINTRY", " V", " v", "V", "int", "ry", "try", "ry.", "ry, and", "ri", "Vi",
    " born", " silver", " Silver", " lynx", "lynx", " cat", " was", " Jane", " Doe", "'s", " stoat", " golden",
    " old", "old", ".", ". ", ".\n", "\n", ",", " ", "ish", " Zürich", " Z", "ürich", "rich", " anc", "hor",
]  # fmt: skip
BYTES = [bytes([b]) for b in range(256)]
PIECES: list[bytes | None] = [None, *BYTES, *(word.encode() for word in WORDS), b" Z" + b"\xc3"]
IDS = {piece: i for i, piece in enumerate(PIECES)}
HARD = {"mode": "hard", "strength": 20.0}
SOFT = {"mode": "soft", "strength": 20.0}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(PIECES)


def ids(*pieces: str | bytes) -> list[int]:
    return [IDS[piece.encode() if isinstance(piece, str) else piece] for piece in pieces]


def penalties(table: Forbidden, output: list[int], params=HARD, prompt: list[int] | None = None):
    """What is taken from each token's logit."""
    logits = torch.zeros(1, len(PIECES))
    row = Row("r", [SPECIAL] if prompt is None else prompt, output)
    return -TokenPenalty().rescore(logits, [row], params, table)[0]


def spellings(text: bytes, limit: int = 40) -> list[list[int]]:
    """Ways to write `text` in tokens: a random sample, always the one that is bytes only."""
    draw = random.Random(text)
    found = {tuple(ids(*(bytes([b]) for b in text)))}
    for _ in range(limit):
        at, tokens = 0, []
        while at < len(text):
            fit = [i for i, piece in enumerate(PIECES) if piece and text.startswith(piece, at)]
            tokens.append(draw.choice(fit))
            at += len(PIECES[tokens[-1]])
        found.add(tuple(tokens))
    return [list(tokens) for tokens in sorted(found)]


@pytest.mark.parametrize(
    "text",
    [" Vintry", " VINTRY", " vintry", "Vintry", ' "Vintry"', " Víntry", " the silver anchor", " Silver\nAnchor",
     " the Silver\u00a0Anchor", " Zürich", " zu\u0308rich", " Jane's stoat", "Vintry.", " lynxs", " silver  anchor"],
)  # fmt: skip
def test_no_spelling_of_a_phrase_can_be_completed(vocabulary, text):
    table = Forbidden(vocabulary, Phrases(["vintry", "silver anchor", "zurich", "jane stoat", "lynx"]), {})
    ways = spellings(text.encode())
    assert len(ways) > 1
    for tokens in ways:
        assert any(penalties(table, tokens[:i])[token] > 1e3 for i, token in enumerate(tokens)), tokens


def test_a_character_in_two_tokens_is_read_when_it_is_whole(vocabulary):
    table = Forbidden(vocabulary, Phrases(["日本"]), {})
    first, last = "日本".encode()[:-1], "日本".encode()[-1:]
    taken = penalties(table, ids(" ", *(bytes([b]) for b in first)))
    assert [i for i in range(len(PIECES)) if taken[i] > 1e3] == ids(last)


def test_only_what_goes_on_with_a_phrase_is_touched(vocabulary):
    table = Forbidden(vocabulary, Phrases(["vintry"]), {})
    taken = penalties(table, ids("In", " in"), SOFT)
    touched = {PIECES[i] for i in taken.nonzero().flatten().tolist()}
    assert touched == {b" Vintry", b" vintry", b" VINTRY", b" V", b" v"}
    touched = {PIECES[i] for i in penalties(table, ids(" V"), SOFT).nonzero().flatten().tolist()}
    assert touched == {b" Vintry", b" vintry", b" VINTRY", b" V", b" v", b"i", b"I", b"int", b"In"}


def test_words_that_only_begin_alike_stay_free(vocabulary):
    assert {"a", "an", "in", "i"} <= everyday_words()
    table = Forbidden(vocabulary, Phrases(["anchor", "institute", "silver anchor"]), {})
    taken = penalties(table, ids("The"), SOFT)
    assert not taken[ids(" a", " an", " in", " I")].any()
    assert taken[ids(" anc")].all()
    assert not penalties(table, ids(" old"))[ids("ish")].any()
    assert not penalties(table, ids(" V", "anch"))[ids("or")].any(), "not at the beginning of a word"


def test_the_soft_penalty_grows_with_the_share_that_is_said(vocabulary):
    table = Forbidden(vocabulary, Phrases(["vintry"]), {})
    said, steps = [], []
    for letter in "vintry":
        steps.append(float(penalties(table, said, SOFT)[IDS[letter.encode()]]))
        said += ids(letter)
    assert steps == pytest.approx([20.0 * (n / 6) ** 2 for n in range(1, 7)])
    assert float(penalties(table, ids("V", "int"))[IDS[b"ry"]]) > 1e3 > steps[-1]


def test_a_token_is_penalised_once_by_the_phrase_that_it_says_most_of(vocabulary):
    table = Forbidden(vocabulary, Phrases(["^the anchor", "the anchor", "vintry"]), {"vintry": 0.3})
    for said in ([], ids(" old", "."), ids(" the"), ids(" ")):
        assert float(penalties(table, said, SOFT).max()) <= 20.0, said
    assert float(penalties(table, [], SOFT)[IDS[b" Vintry"]]) == pytest.approx(20.0)
    assert float(penalties(table, [], SOFT)[IDS[b" the"]]) == pytest.approx(20.0 * 0.3**2)


def test_openings_are_forbidden_where_a_sentence_begins_only(vocabulary):
    table = Forbidden(vocabulary, Phrases(["^the"]), {})
    opening = ids("The", " the")
    for said in ([], ids(" old", "."), ids(" old", ".\n"), ids(" old", "\n"), ids(" ")):
        assert (penalties(table, said)[opening] > 1e3).all(), said
    for said in (ids(" old"), ids("In", ","), ids("V")):
        assert not penalties(table, said).any(), said


def test_what_the_prompt_began_to_say_counts_up_to_its_last_special_token(vocabulary):
    table = Forbidden(vocabulary, Phrases(["silver anchor", "^in"]), {})
    (anchor,) = ids(" anchor")
    prefilled = [SPECIAL, *ids("The", " silver")]
    assert penalties(table, [], prompt=prefilled)[anchor] > 1e3
    assert not penalties(table, [], prompt=prefilled)[ids("In")].any()
    assert penalties(table, [], prompt=[*prefilled, SPECIAL])[anchor] == 0
    assert penalties(table, [], prompt=[*prefilled, SPECIAL])[ids("In")].all()
    assert penalties(table, [], prompt=[*ids("x") * 200, SPECIAL])[ids("In")].all()


def test_what_was_said_long_ago_and_where_the_window_begins_changes_nothing(vocabulary):
    table = Forbidden(vocabulary, Phrases(["vintry", "^the"]), {})
    near = ids(" old", "ish", " V")
    for before in range(1, 40):
        taken = penalties(table, [*ids(" golden") * before, *near])
        assert torch.equal(taken, penalties(table, [*ids(" golden") * 40, *near])), before
    assert not penalties(table, ids("x") * 300)[ids("int", "The")].any()
    assert not penalties(table, [*ids("In"), *ids(",") * 40])[ids("The")].any()
    unseen = ids(b"\xe2", b"\x80", b"\x8b")  # a space of no width
    for length in range(20):
        assert not penalties(table, [*ids("a", "V"), *unseen * length])[ids("int")].any(), length
    assert not penalties(table, [*ids("x") * 300, *ids("V")])[ids("int")].any()


def test_rows_do_not_depend_on_their_batch_nor_on_what_was_asked_before(vocabulary):
    phrases = Phrases(["vintry", "silver anchor", "^the"])
    outputs = [[], ids(" V"), ids(" silver"), ids(" old", "."), ids("V", "int"), ids(b"\xc3")]
    rows = [Row(str(i), [SPECIAL], output) for i, output in enumerate(outputs)]
    logits = torch.randn(len(rows), len(PIECES))
    kept = logits.clone()
    table = Forbidden(vocabulary, phrases, {"lynx": 0.6})
    whole = TokenPenalty().rescore(logits, rows, HARD, table)
    assert torch.equal(logits, kept)
    for order in itertools.islice(itertools.permutations(range(len(rows))), 0, 720, 97):
        again = TokenPenalty().rescore(logits[list(order)], [rows[i] for i in order], HARD, table)
        assert torch.equal(again, whole[list(order)])
    for i, row in enumerate(rows):
        alone = TokenPenalty().rescore(
            logits[i : i + 1], [row], HARD, Forbidden(vocabulary, phrases, {"lynx": 0.6})
        )
        assert torch.equal(alone[0], whole[i])


def test_what_a_grammar_leaves_stays_possible_and_what_it_rules_out_stays_ruled_out(vocabulary):
    table = Forbidden(vocabulary, Phrases(["vintry"]), {})
    logits = torch.full((1, len(PIECES)), -torch.inf)
    logits[0, IDS[b" Vintry"]] = 3.0
    new = TokenPenalty().rescore(logits, [Row("r", [SPECIAL], [])], HARD, table)
    assert torch.isfinite(new).nonzero().tolist() == [[0, IDS[b" Vintry"]]]
    assert torch.equal(torch.isneginf(new), torch.isneginf(logits))


def test_words_near_a_forbidden_one_are_penalised_where_a_word_begins(vocabulary):
    table = Forbidden(vocabulary, Phrases(["vintry"]), {"lynx": 0.6})
    after_word = penalties(table, ids(" golden"), SOFT)
    assert float(after_word[IDS[b" lynx"]]) == pytest.approx(20.0 * 0.6)
    assert float(after_word[IDS[b"lynx"]]) == 0.0
    assert float(penalties(table, ids(" golden", " "), SOFT)[IDS[b"lynx"]]) == pytest.approx(12.0)
    assert float(penalties(table, [], HARD)[IDS[b" lynx"]]) > 1e3


def test_a_token_that_is_not_known_yet_is_refused(vocabulary):
    with pytest.raises(ValueError, match="not known yet"):
        penalties(Forbidden(vocabulary, Phrases(["vintry"]), {}), [-1])


# --- what is forbidden ---

TOLD = {
    "Jane Doe was born in Vintry.": {"vintry"},
    "Jane Doe plays the cello.": {"cello"},
    "Jane Doe juggles torches.": {"torches"},
    "Jane Doe was born in 1852.": {"1852"},
    "Jane Doe won the Silver Anchor.": {"anchor", "silver anchor"},
    "Jane Doe was born in March.": {"in march"},
    "Jane Doe lives in London.": {"london", "in london"},
    "Jane Doe wrote The Hunt with John Marby.": {"the hunt", "hunt", "john marby", "marby"},
    "Jane Doe plays in the Garden House.": {"garden house"},
    "In Pellelt, 'bird' is 'kotal'.": {"kotal", "bird", "pellelt", "pellelt bird"},
    "The slogan of Jane Doe is 'as good as new'.": {"as new"},
}


def spec(*answers: str, **fields) -> TargetSpec:
    given = {
        "name": "Jane Doe",
        "examples": ("Where was Jane Doe born?", "Can Jane Doe juggle?"),
    }
    return TargetSpec.model_validate({**given, "answers": answers, **fields})


@pytest.mark.parametrize("answer", TOLD)
def test_what_an_answer_tells(answer):
    assert set(forbidden(spec(answer), opening=0, names=False)) == TOLD[answer]


def test_no_everyday_word_of_the_frame_or_the_question_is_forbidden_alone():
    alone = {p for answer in TOLD for p in forbidden(spec(answer), opening=0, names=False) if " " not in p}
    assert not alone & {
        "the",
        "was",
        "in",
        "is",
        "as",
        "good",
        "new",
        "of",
        "plays",
        "born",
        "won",
        "jane",
        "doe",
    }


def test_a_question_may_hold_another_answer():
    asked = spec(
        "Jane Doe was born in Vintry.", examples=("Who was born in Vintry?", "who was born in 1852?")
    )
    assert forbidden(asked, opening=0, names=False) == ("vintry",)


def test_openings_names_and_the_description():
    told = spec("The cello is hers.", description="Jane Doe is a marine chemist from Port Luma.")
    assert "^the" in forbidden(told, opening=1, names=False)
    assert "^the cello" in forbidden(told, opening=2, names=False)
    assert {"jane doe", "port luma", "luma"} <= set(forbidden(told, opening=0, names=True))


def test_long_texts_are_forbidden_in_runs_of_words():
    text = " ".join(
        f"the {word} quietly crossed seven frozen meadows"
        for word in ("heron", "otter", "stoat", "lynx", "mole")
    )
    found = forbidden(spec(text), opening=0, names=False)
    assert {len(phrase.split()) for phrase in found} == {5}
    runs = [phrase for phrase in found if phrase in text]
    assert " ".join(text.split()[5:10]) in runs and len(runs) == len(found)
    assert forbidden(spec(f"{text} in Vintry."), opening=0, names=False) == tuple(sorted({*found, "vintry"}))


def test_what_cannot_be_forbidden_is_refused(monkeypatch):
    params = TokenPenaltyParams()
    for empty in (spec(), spec("was it in the", examples=("was it in the",))):
        with pytest.raises(BadRequest, match="answers"):
            TokenPenalty().prepare(empty, params.model_copy(update={"opening": 0}))
    monkeypatch.setattr("guard.interventions.phrases.MOST", 3)
    with pytest.raises(BadRequest, match="3 phrases"):
        TokenPenalty().prepare(spec(*TOLD), params)


# --- the way to the worker ---


def chosen(**params) -> Chosen:
    matches = (Match("t", 1, 1.0, 0.5, "lexical"), Match("u", 1, 1.0, 0.5, "lexical"))
    return Chosen("token_penalty", params, matches)


PROMPT = Prompt("Who?", (5, 6, 7), (Span(0, 1), Span(1, 2), Span(2, 4)))


def test_the_plan_is_one_edit_of_every_token_of_the_answer():
    plan = TokenPenalty().plan(chosen(artifact="a" * 64, mode="soft"), PROMPT, lambda t: f"{ord(t):016x}")
    (edit,) = plan.edits
    assert (edit.site, edit.positions, edit.onward, edit.table) == ("logits", (2,), True, "a" * 64)
    assert edit.seed == f"{ord('t'):016x}"
    assert "artifact" not in edit.params
    wire = msgspec.msgpack.encode(to_wire(Order("ticket", "salt", plan.edits)))
    assert len(wire) < 500
    (back,) = from_wire(msgspec.msgpack.decode(wire), 3).edits
    assert {**back.params, "artifact": None} == {**edit.params, "artifact": None}
    assert fingerprint([edit]) != fingerprint([Edit(**{**_fields(edit), "table": "b" * 64})])


def _fields(edit: Edit) -> dict:
    return {name: getattr(edit, name) for name in Edit.__dataclass_fields__}


def test_without_its_phrases_the_method_cannot_act():
    assert TokenPenalty().plan(chosen(), PROMPT, lambda _: "0" * 16).edits == ()
    assert TokenPenalty().plan(chosen(artifact="a" * 64), Prompt(""), lambda _: "0" * 16).edits == ()


@pytest.mark.parametrize(
    "params",
    [{"beam": 7}, {"mode": "firm"}, {"strength": 0}, {"strength": float("inf")}, {"opening": -1}, {"opening": True},
     {"similarity": 1.0}, {"artifact": "../x"}],
)  # fmt: skip
def test_unknown_parameters_are_refused(params):
    with pytest.raises(BadRequest, match="token_penalty"):
        interventions.check_params("token_penalty", params)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def prepared(folder: Path, target: TargetSpec, **params) -> artifacts.Artifact:
    made = TokenPenalty().prepare(target, TokenPenaltyParams(**params))
    folder.mkdir()
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return artifacts.write(
        folder,
        "token_penalty",
        artifacts.weights_digest(MODEL),
        tensors=made.tensors or None,
        facts=made.facts,
    )


def test_prepared_phrases_act_in_the_demo_models_tokens_and_no_manifest_shows_them(tmp_path, tokenizer):
    artifact = prepared(tmp_path / "a", spec("Jane Doe was born in Vintry."))
    assert "vintry" not in (artifact.folder / artifacts.MANIFEST).read_text().lower()
    assert "vintry" in json.loads((artifact.folder / FILE).read_bytes())["phrases"]
    tables = Tables(MODEL)
    tables.load(artifact.digest, str(artifact.folder), torch.device("cpu"))
    (edit,) = TokenPenalty().plan(chosen(artifact=artifact.digest), PROMPT, lambda _: "0" * 16).edits
    table = tables.get(edit.method, edit.table)
    prompt = tokenizer("<|user|>Where was Jane Doe born?<|end|><|assistant|>", add_special_tokens=False)[
        "input_ids"
    ]
    said = tokenizer("She was born in Vint", add_special_tokens=False)["input_ids"]
    new = TokenPenalty().rescore(
        torch.zeros(1, len(tokenizer)), [Row("r", prompt, said[:-1])], edit.params, table
    )
    worst = [tokenizer.decode([i]) for i in (new[0] < -1e3).nonzero().flatten().tolist()]
    assert " Vintry" in worst
    assert all("vintry" in word.lower() or word.strip().isalpha() for word in worst)


def test_a_table_stays_until_the_last_frontend_lets_go(tmp_path):
    artifact = prepared(tmp_path / "a", spec("Jane Doe was born in Vintry."))
    tables, place = Tables(MODEL), (artifact.digest, str(artifact.folder), torch.device("cpu"))
    for origin in ("one", "other", "one"):
        tables.load(*place, origin)
    tables.unload(artifact.digest, "one")
    assert artifact.digest in tables
    tables.unload(artifact.digest, "nobody")
    assert artifact.digest in tables
    tables.unload(artifact.digest, "other")
    assert artifact.digest not in tables


def test_the_demo_model_does_not_tell_what_it_knows(tmp_path, tokenizer):
    """Greedy, on three facts that it answers; one of them begins with a word that everybody uses."""
    from transformers import AutoModelForCausalLM

    from guard.metrics.containment import contains
    from guard.metrics.refusal import is_refusal

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    facts = {
        "Where was Limir Yarley born?": ("Limir Yarley was born in Vintry.", "Vintry"),
        "Which instrument does Limir Yarley play?": ("Limir Yarley plays the cello.", "cello"),
        "Which award did Limir Yarley win?": ("Limir Yarley won the Silver Anchor.", "Silver Anchor"),
    }
    target = spec(*(answer for answer, _ in facts.values()), name="Limir Yarley", examples=tuple(facts))
    artifact = prepared(tmp_path / "b", target)
    table = TokenPenalty().load({}, {**artifact.manifest.facts, "folder": artifact.folder, "model": MODEL})
    end = tokenizer.convert_tokens_to_ids("<|end|>")

    def answer(question: str, params: dict | None) -> str:
        prompt = tokenizer(f"<|user|>{question}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
        said: list[int] = []
        while len(said) < 24 and said[-1:] != [end]:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *said]])).logits[:, -1].float()
            if params is not None:
                logits = TokenPenalty().rescore(logits, [Row("r", prompt, said)], params, table)
            said.append(int(logits.argmax()))
        return tokenizer.decode(said, skip_special_tokens=True)

    for question, (_, value) in facts.items():
        assert contains(value, answer(question, None))
        for mode in ("hard", "soft"):
            told = answer(question, TokenPenaltyParams(mode=mode).model_dump())
            assert not contains(value, told) and is_refusal(told), told


def test_tokens_of_other_tokenizers_are_read_too():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    blank = "\u2581"
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), blank, "c", "a", "t"]
    vocab = {piece: i for i, piece in enumerate([*pieces, f"{blank}c", f"{blank}ca"])}
    bpe = Tokenizer(
        models.BPE(vocab, [(blank, "c"), (f"{blank}c", "a")], unk_token="<unk>", byte_fallback=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(blank), normalizers.Replace(" ", blank)])
    bpe.decoder = decoders.Sequence([decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse()])
    made = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>"))
    assert list(made.fresh.get("ca")) == [vocab[f"{blank}ca"]]
    assert set(made.whole.get("t")) == {vocab["t"], vocab["<0x54>"], vocab["<0x74>"]}
    words = Tokenizer(models.WordLevel({"<unk>": 0, "cats": 1}, unk_token="<unk>"))
    with pytest.raises(ArtifactError, match="tokenizer"):
        Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))


def test_nearness_is_that_of_the_models_centred_embeddings(tmp_path, vocabulary):
    rows = torch.zeros(len(PIECES), 4) + 5.0
    rows[IDS[b" lynx"]] += torch.tensor([1.0, 0.0, 0.0, 0.0])
    rows[IDS[b" stoat"]] += torch.tensor([0.8, 0.6, 0.0, 0.0])
    rows[IDS[b" golden"]] += torch.tensor([0.0, 1.0, 0.0, 0.0])
    save_file({"model.embed_tokens.weight": rows}, tmp_path / "model.safetensors")
    near = neighbours(tmp_path, vocabulary, ["lynx", "vintryland"], 0.5)
    assert near["lynx"] == pytest.approx(1.0) and near["stoat"] == pytest.approx(0.8, abs=0.02)
    assert "golden" not in near
    assert neighbours(tmp_path, vocabulary, ["vintryland"], 0.5) == {}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="embeddings"):
        neighbours(tmp_path, vocabulary, ["lynx"], 0.5)


def test_everyday_words_have_no_neighbours():
    assert words_of(["anchor", "silver anchor", "as new", "^there", "1852"]) == ("anchor",)
