"""The command line, `lethe`. Commands import what they need when they run: `lethe --help` must be instant."""

from __future__ import annotations

from server.cli.base import Main, command_table

main = Main(
    name="lethe",
    help="Serve a language model that behaves as if it had never learned what you register to be forgotten.",
    epilog="Start with `lethe serve --demo`; every command explains itself with --help.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=command_table(),
)

__all__ = ["main"]
