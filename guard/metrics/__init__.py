"""The metrics of unlearning, one file each, as pure functions: the one place for trainers and evaluation.

Each file states its definition and where that definition comes from.
"""
