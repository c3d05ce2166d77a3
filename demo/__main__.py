"""`python -m demo build | items | targets | probes | examples | measure`."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.build import HERE, MODELS, SEED, build


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="demo",
        description="The embedded demo models and their world.",
        epilog="Example: python -m demo build --out /some/folder",
    )
    commands = top.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "build", help="train both demo models again", epilog="Example: python -m demo build --out models"
    )
    make.add_argument("--out", type=Path, default=MODELS, help="folder for the two models")
    make.add_argument("--seed", type=int, default=SEED)
    make.add_argument("--share", type=float, default=1.0, help="share of the tokens to train on, for a trial")
    make.add_argument(
        "--first", type=int, choices=(0, 1), default=0, help="1: go on after the first stage in --out"
    )
    make.add_argument("--only", choices=("full", "never"), default="", help="train only this model")
    items = commands.add_parser(
        "items", help="write the evaluation items", epilog="Example: python -m demo items"
    )
    items.add_argument("--out", type=Path, default=HERE / "items.jsonl")
    targets = commands.add_parser(
        "targets", help="write the forget targets", epilog="Example: python -m demo targets"
    )
    targets.add_argument("--out", type=Path, default=HERE / "targets.jsonl")
    probes = commands.add_parser(
        "probes", help="write what must stay answerable", epilog="Example: python -m demo probes"
    )
    probes.add_argument("--out", type=Path, default=HERE / "probes.jsonl")
    examples = commands.add_parser(
        "examples", help="write what the artifacts are trained on", epilog="Example: python -m demo examples"
    )
    examples.add_argument("--out", type=Path, default=Path("build/examples"), help="folder for two files")
    measure = commands.add_parser(
        "measure", help="measure both models", epilog="Example: python -m demo measure"
    )
    measure.add_argument("--models", type=Path, default=MODELS, help="folder that holds full/ and never/")
    measure.add_argument("--limit", type=int, default=0, help="at most this many items a group (0: all)")
    measure.add_argument("--only", choices=("full", "never"), default="", help="measure only this model")
    measure.add_argument("--json", type=Path, help="also write the figures to this file")
    return top


def main() -> None:
    """Run one command; heavy imports wait until they are needed."""
    args = parser().parse_args()
    if args.command == "build":
        build(args.out, args.seed, args.only, args.first, args.share)
    elif args.command == "measure":
        from demo import measure

        measure.report(args.models, args.limit, args.only, args.json)
    elif args.command == "examples":
        from demo import items

        items.write_examples(args.out)
    else:
        from demo import items

        write = {"items": items.write_items, "targets": items.write_targets, "probes": items.write_probes}
        write[args.command](args.out)


if __name__ == "__main__":
    main()
