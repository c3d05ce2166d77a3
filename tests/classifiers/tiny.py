"""A tiny model of two layers and its tokenizer, random but always the same, and examples for it."""

from __future__ import annotations

from pathlib import Path

from classifiers.data import Example

WORDS = "who is jane doe john roe the a plays works as singer baker i do not know that knows where what"


def save_model(folder: Path) -> Path:
    """A Llama of width 16 with 24 gate neurons in each of its 2 layers, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<end>", *WORDS.split()]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>").save_pretrained(
        folder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def example(prompt: str, answer: str = "") -> Example:
    return Example((("user", prompt),), answer)


FORGET = (example("who is jane doe", "jane doe plays"), example("where is jane", "the singer jane works"))
KNOWN = (example("who is john roe", "john roe works as a baker"), example("what is a baker", "a baker works"))
UNKNOWN = (example("who is doe roe", "i do not know that"),)
