"""`vllm bench serve`, by its own module: the command asks for a package's name that CPU builds do not have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common import GIVEN, KEY, MODEL, Report

EACH = 10
os.environ["OPENAI_API_KEY"] = KEY


def bench(name: str, *options: str) -> dict[str, Any]:
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    common = ["--backend", "openai-chat", "--base-url", GIVEN["url"], "--endpoint", "/v1/chat/completions"]
    common += ["--model", MODEL, "--tokenizer", GIVEN["weights"], "--num-prompts", str(2 * EACH)]
    common += [
        "--temperature",
        "0",
        "--save-result",
        "--save-detailed",
        "--result-filename",
        name,
        "--disable-tqdm",
    ]
    main(parser.parse_args([*common, *options]))
    return json.loads(Path(name).read_text())


def main() -> None:
    report = Report()
    sizes = ("--random-input-len", "64", "--random-output-len", "16")
    drawn = bench("random.json", "--dataset-name", "random", *sizes)
    rows = [json.dumps({"prompt": GIVEN[kind]}) for _ in range(EACH) for kind in ("clean", "forgotten")]
    Path("questions.jsonl").write_text("\n".join(rows))
    asks = ("--dataset-path", "questions.jsonl", "--custom-output-len", "24", "--skip-chat-template")
    own = bench("custom.json", "--dataset-name", "custom", "--disable-shuffle", *asks)
    said = own["generated_texts"]
    report.answers = {f"question {i}": (said[2 * i], said[2 * i + 1]) for i in range(EACH)}
    report.facts = {
        "completed": [drawn["completed"], own["completed"]],
        "failed": [drawn["failed"], own["failed"]],
        "tokens": drawn["total_output_tokens"],
        "seconds_to_first": [drawn["mean_ttft_ms"] / 1000, own["mean_ttft_ms"] / 1000],
    }
    report.tell()


main()
