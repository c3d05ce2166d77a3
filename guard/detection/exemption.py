"""Prompts that name a target and must stay answerable: what is public of somebody whose private life is not.

A name alone cannot tell them apart from what must be forgotten. Where an operator registers `retain` prompts
that hold the name, a hit on the name counts only if the words around it are not nearer to those than to the
examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guard.detection.base import Exemption
from guard.detection.swaps import mentions
from guard.targets import TargetSpec


def named_retain(spec: TargetSpec, texts: Sequence[str]) -> np.ndarray:
    """[texts] bool: which texts hold one of the target's names."""
    return np.array([any(mentions(text, name) for name in spec.names()) for text in texts], bool)


def exemption(retain: np.ndarray, own: np.ndarray, sources: np.ndarray, floor: float) -> Exemption | None:
    """Calibrated on the target's own texts: none of them, judged by the others, would be exempt.

    `retain` [m, dim], `own` [n, dim] with `sources` [n], `floor` the similarity from which two texts ask the
    same."""
    if not len(retain):
        return None
    margin = 0.0
    if len(own):
        apart = np.where(sources[:, None] == sources[None, :], -1.0, own @ own.T).max(axis=1)
        known = apart > -1.0
        if known.any():
            margin = max(0.0, float(((own @ retain.T).max(axis=1) - apart)[known].max()))
    return Exemption(retain, own, margin + 1e-6, floor)


def exempt(windows: np.ndarray, by: Exemption) -> np.ndarray:
    """[windows] bool: whether each window asks for what must stay answerable."""
    to_retain = (windows @ by.retain.T).max(axis=1)
    to_own = (windows @ by.own.T).max(axis=1) if len(by.own) else np.zeros(len(windows), np.float32)
    result: np.ndarray = (to_retain >= by.floor) & (to_retain - to_own >= by.margin)
    return result
