from pathlib import Path

import numpy as np

from guard.detection import Encoder
from guard.detection.background import background, background_groups, background_hash
from guard.detection.background_templates import FAMILIES
from guard.detection.background_vectors import load_background
from guard.detection.background_words import POOLS


def test_the_set_is_large_varied_and_always_the_same() -> None:
    prompts = background()

    assert len(prompts) == len(set(prompts)) == len(background_groups()) >= 2_000
    assert len(set(background_groups())) >= 0.98 * sum(map(len, FAMILIES.values()))
    assert len(background_hash()) == 16
    assert all(prompt == prompt.strip() and prompt for prompt in prompts)


def test_every_slot_of_a_template_is_filled() -> None:
    left = [p for p in background() for slot in (*POOLS, "person", "company", "title") if f"{{{slot}}}" in p]
    assert left == []


def test_vectors_are_computed_once_and_read_again(hashing: Encoder, tmp_path: Path) -> None:
    first = load_background(hashing, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns

    again = load_background(hashing, tmp_path)

    assert np.array_equal(first.vectors, again.vectors)
    assert file.stat().st_mtime_ns == written


def test_a_broken_file_is_computed_again(hashing: Encoder, tmp_path: Path) -> None:
    load_background(hashing, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"junk")
    assert load_background(hashing, tmp_path).vectors.shape == (len(background()), hashing.dim)
