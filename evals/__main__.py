"""`python -m evals SUITE ...`; `lethe eval SUITE ...` passes its arguments here."""

from evals.cli import main

main()
