"""Evaluation of a guarded server, against any OpenAI-compatible endpoint: forgetting, isolation, parity,
swaps."""
