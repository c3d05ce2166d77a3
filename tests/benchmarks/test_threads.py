"""What the benchmark of detection's threads lays on a gate and tells of it."""

import asyncio
import time

from benchmarks import threads
from benchmarks.threads import Mix, Seen, Texts, crowd


class Slow:
    """A gate that takes a while for each prompt, and notes how many are in it at once."""

    def __init__(self):
        self.now, self.most, self.texts = 0, 0, []

    def detect(self, prompt):
        self.texts.append(prompt.text)
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.01)
        self.now -= 1


def test_no_more_prompts_are_judged_at_once_than_there_are_threads(monkeypatch):
    monkeypatch.setattr(threads, "PAUSE", 0.0)
    for count in (1, 3):
        gate, seen = Slow(), Seen()
        asyncio.run(crowd(gate, Texts(), Mix("m", ((6, 16), (2, 60))), count, 0.3, seen))
        assert gate.most == count
        assert set(seen.verdicts) == {16, 60} and min(map(min, seen.verdicts.values())) >= 0.01
        assert seen.late and seen.wall >= 0.3 and seen.cpu > 0
        assert len(set(gate.texts)) == len(gate.texts) > 10
        assert "16 tokens" in seen.told() and "cores" in seen.told()
