"""Fuzzes one target until its budget is used or something is found; started by `run.py`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["trimodal", "bs4", "html", "email", "json", "pickletools", "zipfile"]):
    from nasty.targets import LONGEST_INPUT, all_targets

atheris.Setup([sys.argv[0], f"-max_len={LONGEST_INPUT}", *sys.argv[2:]], all_targets()[sys.argv[1]].run)
atheris.Fuzz()
