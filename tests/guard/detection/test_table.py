from pathlib import Path

import guard.detection as detection
from guard.detection import DETECTORS
from guard.detection.gate import load_detector


def test_every_detector_of_the_table_loads() -> None:
    for name, path in DETECTORS.items():
        loaded = load_detector(path)
        assert path == f"guard.detection.{name}:{loaded.__name__}"
        assert callable(loaded.detect)


def test_every_detector_file_is_in_the_table() -> None:
    folder = Path(detection.__file__).parent
    holding = {
        file.stem for file in folder.glob("*.py") if "def detect(self, reading: Reading)" in file.read_text()
    }
    assert holding - {"base"} == set(DETECTORS)
