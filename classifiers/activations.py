"""What goes on inside a model while it reads examples: the values at the sites where the guard edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from classifiers.data import Encoded
from guard.errors import BadRequest

if TYPE_CHECKING:
    import torch

Which = Literal["last", "answer", "prompt", "all"]


def load_model(folder: Path) -> tuple[Any, Any]:
    """The causal model in `folder`, float32 and not for training, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def blocks(model: Any) -> list[Any]:
    """The decoder layers in order: the longest list of modules that the model holds."""
    import torch

    lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])


def layers_of(model: Any, wanted: Sequence[int] | Literal["all", "middle"]) -> list[int]:
    """`wanted` in order, or all, or the one in the middle.

    Raises:
        BadRequest: the model has no such layer, or none is wanted.
    """
    count = len(blocks(model))
    named = {"all": list(range(count)), "middle": [count // 2]}
    layers = named[wanted] if isinstance(wanted, str) else sorted(set(wanted))
    if not layers or not all(0 <= layer < count for layer in layers):
        raise BadRequest(f"The model has layers 0 to {count - 1}; {wanted} does not name some of them.")
    return layers


def collect(
    model: Any,
    examples: Sequence[Encoded],
    site: Literal["residual", "neuron", "key"],
    layers: Sequence[int],
    *,
    tokens_at_once: int = 8_192,
) -> Iterator[tuple[Encoded, torch.Tensor]]:
    """Each example with what the site shows while it is read: [layers, tokens, width], float32.

    `residual` is what a decoder layer gives to the next, `neuron` the pre-activations of its gate projection, `key`
    what its down projection gets.
    Examples of like length are read together, so they come in another order than they were given in.

    Raises:
        BadRequest: a layer has no such projection.
    """
    import torch

    shown: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = inputs if site == "key" else output
            shown[layer] = value[0] if isinstance(value, tuple) else value

        return hook

    hooks = [module_at(model, site, layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        for batch in _batches(examples, tokens_at_once):
            longest = max(len(e.ids) for e in batch)
            ids = torch.tensor([e.ids + (0,) * (longest - len(e.ids)) for e in batch])
            mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in batch])
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            values = torch.stack([shown[layer] for layer in layers]).float()
            for i, example in enumerate(batch):
                yield example, values[:, i, : len(example.ids)]
    finally:
        for hook in hooks:
            hook.remove()


def chosen_tokens(example: Encoded, values: torch.Tensor, which: Which) -> torch.Tensor:
    """The columns of `values` [layers, tokens, width] for tokens of the example: the `last` of its prompt, those of
    its `answer` or of its `prompt`, or `all`. The first token is not among them: attention rests on it, and its
    activations say little of the text."""
    end = example.answer_at
    start, stop = {
        "last": (end - 1, end),
        "answer": (end, len(example.ids)),
        "prompt": (1, end),
        "all": (1, len(example.ids)),
    }[which]
    return values[:, start:stop]


def module_at(model: Any, site: str, layer: int | None) -> Any:
    """The module whose output a site shows: the input embedding, a decoder layer, or its gate projection; or whose
    input, the down projection.

    Raises:
        BadRequest: a layer has no such projection.
    """
    if layer is None:
        return model.get_input_embeddings()
    block = blocks(model)[layer]
    if site == "residual":
        return block
    name = {"neuron": "gate", "key": "down"}[site]
    projection = getattr(getattr(block, "mlp", None), f"{name}_proj", None)
    if projection is None:
        raise BadRequest(f"The model's feed-forward networks have no {name} projection.")
    return projection


def _batches(examples: Sequence[Encoded], tokens_at_once: int) -> Iterator[list[Encoded]]:
    """Examples by length, as many together as pad to at most `tokens_at_once` tokens, at least one."""
    batch: list[Encoded] = []
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if batch and len(example.ids) * (len(batch) + 1) > tokens_at_once:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch
