"""O3's orthogonality: an adapter reads other directions of its inputs than the adapters of earlier requests do, so that
what one unlearns is not undone by the next (O3, Gao et al., arXiv 2407.10223).

The penalty is the sum over earlier adapters j and the linear layers that both edit of ||A_j A^T||_F^2, averaged over
the decoder layers. The paper's equation takes the adapter just before; the published code, and this, all of them. B
plays no part in either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from classifiers.lora import Pairs

_LAYER = re.compile(r"\.\d+\.")


class Orthogonal:
    """The penalty on the adapter of `model` (PEFT's, with one adapter) beside `earlier` ones."""

    def __init__(self, model: Any, earlier: Iterable[Pairs]) -> None:
        known = list(earlier)
        self._shared: list[tuple[torch.Tensor, torch.Tensor]] = []
        layers = set()
        for name, module in model.named_modules():
            name = name.removeprefix("base_model.model.")
            before = [pairs[name][0] for pairs in known if name in pairs]
            if before and hasattr(module, "lora_A"):
                self._shared.append((torch.cat(before), module.lora_A["default"].weight))
                layers.add(_layer(name))
        self._layers = len(layers)

    def __bool__(self) -> bool:
        """Whether any layer is edited by an earlier adapter too."""
        return bool(self._shared)

    def __call__(self) -> torch.Tensor:
        """[]: how far the adapter reads what earlier ones read."""
        parts = [(before @ down.T).square().sum() for before, down in self._shared]
        return torch.stack(parts).sum() / self._layers


def _layer(name: str) -> str:
    """The decoder layer of a linear layer, by its name; outside of them, itself."""
    found = _LAYER.search(name)
    return name[: found.end()] if found else name
