"""`python -m benchmarks serving`: the guarded server against bare vLLM, in paired alternation; `growth` and `swaps`
watch a guarded server; `auto`, `jobs` and `kinds` train on a guarded server; the others need none."""

from __future__ import annotations

import signal
import sys

import click

from benchmarks.ahead import ahead
from benchmarks.auto import auto
from benchmarks.classifiers import classifiers
from benchmarks.detection import detection
from benchmarks.edits import edits
from benchmarks.features import features
from benchmarks.growth import growth
from benchmarks.jobs import jobs
from benchmarks.kinds import kinds
from benchmarks.losses import losses
from benchmarks.plan import plan
from benchmarks.pooling import pooling
from benchmarks.relearning import relearning
from benchmarks.scale import scale
from benchmarks.sequence import sequence
from benchmarks.serving import serving
from benchmarks.sites import sites
from benchmarks.slices import slices
from benchmarks.speech import speech
from benchmarks.startup import startup
from benchmarks.subject import subject
from benchmarks.swaps import swaps
from benchmarks.threads import threads
from benchmarks.tofu import tofu_command
from benchmarks.twin import twin


@click.group()
def main() -> None:
    """Speed of the guarded server and engine, as ratios to bare vLLM in the same run; and of detection."""
    # What a command has started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


main.add_command(ahead)
main.add_command(auto)
main.add_command(classifiers)
main.add_command(detection)
main.add_command(edits)
main.add_command(features)
main.add_command(growth)
main.add_command(jobs)
main.add_command(kinds)
main.add_command(losses)
main.add_command(plan)
main.add_command(pooling)
main.add_command(relearning)
main.add_command(scale)
main.add_command(sequence)
main.add_command(serving)
main.add_command(sites)
main.add_command(slices)
main.add_command(speech)
main.add_command(startup)
main.add_command(subject)
main.add_command(swaps)
main.add_command(threads)
main.add_command(tofu_command)
main.add_command(twin)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
