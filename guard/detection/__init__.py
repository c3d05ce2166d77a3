"""Decides which forget targets a prompt is about. The table is the only place that names the detectors.

A `Compiler` measures and trains a target when it is registered; a `Gate` built from compiled targets judges
prompts. Both share one `Encoder`.
"""

from __future__ import annotations

from guard.detection.base import CompiledTarget, Detector, Head, Reading
from guard.detection.compiler import Compiler
from guard.detection.encoder import Encoder, load_encoder
from guard.detection.gate import Gate, Gates
from guard.detection.heads import read_head
from guard.detection.statements import SpeakingCompiler

DETECTORS = {
    "lexical": "guard.detection.lexical:Lexical",
    "semantic": "guard.detection.semantic:Semantic",
    "classifier": "guard.detection.classifier:Classifier",
    "ood": "guard.detection.ood:Ood",
    "trained": "guard.detection.trained:Trained",
}

BY_MEANING = ("semantic", "classifier")
"""Those that judge what answers say."""

__all__ = [
    "BY_MEANING",
    "DETECTORS",
    "CompiledTarget",
    "Compiler",
    "Detector",
    "Encoder",
    "Gate",
    "Gates",
    "Head",
    "Reading",
    "SpeakingCompiler",
    "load_encoder",
    "read_head",
]
