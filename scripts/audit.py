"""Looks for known vulnerabilities in what the locks pin: audit.py [LOCK…]; by default in all that images hold, and dev.

Asks PyPI's advisory service by pip-audit. pip-audit passes over what its service does not know, and then says that
nothing was found; so a version that is known to be vulnerable is asked for first, and where it is not found, the
service cannot be reached from here. Then the advisories of `requirements/advisories.json` are compared: few, and of the
date that is printed. Ends with 1 for a vulnerable pin, whichever told it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = [
    ROOT / "requirements" / f"{name}.txt" for name in ("build", "serve", "serve-gpu", "full", "torch", "cuda", "dev")
]
ADVISORIES = ROOT / "requirements" / "advisories.json"

Pin = tuple[str, str]
"""Name and version."""

Finding = tuple[str, str, str, str]
"""Name, version, advisory, and what fixes it."""

CANARY = ("django", "3.2")
"""Vulnerable by dozens of advisories, and in no lock: where it is not told so, nothing would be."""


def main(locks: Sequence[Path]) -> int:
    """Prints what was found and by what data; returns the exit status."""
    pins = {pin: lock.name for lock in locks for pin in read_pins(lock.read_text(encoding="utf-8"))}
    if len({name for name, _ in pins}) < len(pins):  # pip-audit would refuse them
        raise ValueError("the locks pin a package to different versions; run scripts/lock")
    told, data = ask([CANARY, *pins]), "PyPI's advisories of today"
    if any(finding[:2] == CANARY for finding in told):
        told = [finding for finding in told if finding[:2] != CANARY]
    else:
        advisories = json.loads(ADVISORIES.read_text(encoding="utf-8"))
        told = list(compare(pins, advisories["advisories"]))
        data = f"{len(advisories['advisories'])} advisories of {advisories['date']}; PyPI's cannot be reached from here"
    for name, version, advisory, fixed in told:
        print(f"{name} {version} ({pins[name, version]}): {advisory}, fixed in {fixed}")
    print(f"{len(pins)} pins against {data}: {len(told)} findings")
    return 1 if told else 0


def read_pins(lock: str) -> Iterator[Pin]:
    """Yields names and versions.

    Raises:
        ValueError: a requirement is not pinned.
    """
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            pin = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", line)
            if pin is None:
                raise ValueError(f"{line!r} is not pinned")
            yield _normal(pin[1]), pin[2]


def ask(pins: Iterable[Pin]) -> list[Finding]:
    """Asks pip-audit, once for all; what its service does not know is left out."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in pins))
        file.flush()
        done = subprocess.run([*command, "-f", "json", "-r", file.name], capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:  # the service is out of reach
        return []
    return [
        (_normal(part["name"]), part["version"], one["id"], ", ".join(one["fix_versions"]) or "no version")
        for part in answer["dependencies"]
        for one in part.get("vulns", ())
    ]


def compare(pins: Iterable[Pin], advisories: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Yields the pins that committed advisories are about, as `ask` does."""
    for name, version in pins:
        for one in advisories:
            if one["package"] == name and any(
                SpecifierSet(affected).contains(Version(version), prereleases=True) for affected in one["affected"]
            ):
                yield name, version, one["id"], one["fixed"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or LOCKS))
