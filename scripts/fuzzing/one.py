"""Fuzzes one target until its budget is used or something is found; started by `run.py`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(
    include=["trimodal", "bs4", "html", "email", "json", "pickletools", "pickle", "zipfile"]
):
    from fuzzing.targets import all_targets


def main() -> None:
    """Runs libFuzzer over the target that the first argument names; the others are libFuzzer's."""
    fuzzed = all_targets()[sys.argv[1]]
    atheris.Setup([sys.argv[0], f"-max_len={fuzzed.max_length}", *sys.argv[2:]], fuzzed.run)
    atheris.Fuzz()


main()
