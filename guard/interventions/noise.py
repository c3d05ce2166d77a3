"""Noise without a generator: every number is a hash of (seed, position, column).

So chunked prefill, preemption, recompute and the order of the batch reproduce it. The hash is splitmix64's
finaliser on int64, whose arithmetic wraps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment
_STRIDE = 0xD1B54A32D192ED03  # another odd constant, so that positions and columns do not share a sequence


def seed_of(digits: str) -> int:
    """The seed of 16 hex digits, as int64."""
    return _signed(int(digits, 16))


def gaussian(seeds: torch.Tensor, positions: torch.Tensor, dims: int) -> torch.Tensor:
    """Standard normal noise [n, dims], float32: a pure function of (seed, position, dimension); seeds and
    positions are [n] int64.

    Box-Muller over the two halves of one 64-bit hash. Logarithm and cosine are taken in double precision:
    vector and scalar code round them differently, which double precision hides from the float32 result.
    """
    import torch

    high, low = _halves(seeds, positions, torch.arange(1, dims + 1, device=positions.device))
    return (torch.sqrt(-2 * torch.log(high)) * torch.cos(2 * math.pi * low)).float()


def uniform(seeds: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1), [n, columns], float64: a pure function of (seed, position, column); `columns` are
    int64, not below 1."""
    return _halves(seeds, positions, columns)[0]


def _halves(
    seeds: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves of one hash for each (row, column), as numbers in (0, 1), float64."""
    rows = _mix(positions.long() * _signed(_GOLDEN) + seeds).unsqueeze(1)
    bits = _mix(rows + columns * _signed(_STRIDE))
    return tuple(((half & 0xFFFFFFFF).double() + 0.5) / 2**32 for half in (bits >> 32, bits))


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
