"""One file per suite, each with one async `run(...) -> Report`."""
