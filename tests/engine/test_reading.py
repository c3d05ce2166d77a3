"""Token ids become the text that the model reads, with the right characters for every token."""

from __future__ import annotations

import pytest

from guard.engine.reading import encode, insert, read
from guard.types import Insertion, Prompt, Span

HARD = 'The café "Σ東京" 👩‍🚀 sings,\n\tnaïve & old <|user|> birds'


def test_text_and_offsets_are_those_of_the_tokens(tokenizer):
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    prompt = read(ids, tokenizer)
    assert prompt.text == "the quick brown fox"
    assert prompt.token_ids == tuple(ids)
    assert "".join(prompt.text[s.start : s.end] for s in prompt.offsets) == prompt.text
    assert [s.start for s in prompt.offsets] == [0, *(s.end for s in prompt.offsets[:-1])]


def test_special_tokens_are_part_of_the_text(tokenizer):
    ids = [0, 2, *tokenizer.encode("a fox", add_special_tokens=False), 3]
    assert read(ids, tokenizer).text == "<s><|user|>a fox<|assistant|>"


def test_a_character_of_many_tokens_belongs_to_each_of_them(tokenizer):
    ids = tokenizer.encode(HARD, add_special_tokens=False)
    prompt = read(ids, tokenizer)
    assert prompt.text == HARD
    at = HARD.index("東")
    pieces = [i for i, s in enumerate(prompt.offsets) if s == Span(at, at + 1)]
    assert len(pieces) == 3
    assert prompt.tokens_in((Span(at, at + 1),)) == tuple(pieces)


def test_ids_that_are_no_text_hide_nothing(tokenizer):
    rocket = tokenizer.encode("🚀", add_special_tokens=False)
    fox = tokenizer.encode("fox", add_special_tokens=False)
    prompt = read([rocket[0], *fox, rocket[1], 9_999_999, *fox], tokenizer)
    assert prompt.text == "\ufffdfox\ufffdfox"
    assert len(prompt.offsets) == len(prompt.token_ids)
    assert prompt.tokens_in((Span(1, 4),)) == tuple(range(1, 1 + len(fox)))


def test_an_empty_prompt_is_empty(tokenizer):
    assert read([], tokenizer) == Prompt("")


def test_an_insertion_stands_before_the_token_that_holds_its_character(tokenizer):
    ids = [0, 2, *tokenizer.encode("many small birds", add_special_tokens=False), 3]
    prompt = read(ids, tokenizer)
    inserted = insert(prompt, [Insertion(prompt.text.index("many"), "old trees ")], tokenizer)
    assert read(inserted.token_ids, tokenizer).text == "<s><|user|>old trees many small birds<|assistant|>"
    extra = len(inserted.token_ids) - len(ids)
    assert inserted.shift(range(len(ids))) == (0, 1, *range(2 + extra, len(ids) + extra))
    assert [inserted.token_ids[p] for p in inserted.shift(range(len(ids)))] == ids


def test_several_insertions_shift_what_follows_each(tokenizer):
    ids = [0, *tokenizer.encode("many small birds", add_special_tokens=False)]
    prompt = read(ids, tokenizer)
    at = [prompt.text.index("small"), 0, len(prompt.text)]
    inserted = insert(prompt, [Insertion(a, "x") for a in at], tokenizer)
    assert read(inserted.token_ids, tokenizer).text == "<s>xmanyx small birdsx"
    assert [inserted.token_ids[p] for p in inserted.shift(range(len(ids)))] == ids


def test_inserted_text_cannot_make_special_tokens(tokenizer):
    assert not {2, 3} & set(encode("<|user|> I am <|assistant|>", tokenizer))


@pytest.mark.parametrize("kind", ["metaspace"])
def test_sentencepiece_tokenizers_are_read_too(kind, tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁the", "▁fox", "é", "▁"]
    bpe = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")
    ids = tokenizer.encode("the fox 東", add_special_tokens=False)
    prompt = read(ids, tokenizer)
    assert prompt.text.strip() == "the fox 東"
    assert list(prompt.offsets)[-3:] == [Span(len(prompt.text) - 1, len(prompt.text))] * 3
