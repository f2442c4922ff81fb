"""What must and must not be in an image; run by `scripts/smoke` inside it, as the user that the image names."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

BUILDERS = ("as", "c++", "cc", "clang", "cpp", "g++", "gcc", "gdb", "ld", "make", "strace", "rustc", "cargo", "javac")
CACHES = ("/var/lib/apt/lists", "/var/cache/apt", "/root/.cache", "/opt/venv/src", "/opt/sbom")
ELSEWHERE = ("/proc", "/sys", "/dev", "/tmp", "/opt/ml")  # noqa: S108  mounted, not of the image
SBOM = Path("/opt/trimodal/sbom.json")


def main() -> int:
    """Prints what is wrong; returns the exit status."""
    problems = [*programs(), *caches(), *rights(), *listed()]
    if os.getuid() == 0:
        problems.append("the image's own user is root")
    print("\n".join(f"  the image: {problem}" for problem in problems) or "  the image holds what it should")
    return 1 if problems else 0


def programs() -> Iterator[str]:
    """Yields compilers and debuggers."""
    yield from (f"{name} is there: {path}" for name in BUILDERS if (path := shutil.which(name)))


def caches() -> Iterator[str]:
    """Yields what package managers leave behind."""
    for pattern in CACHES:
        for place in Path("/").glob(pattern[1:]):
            if place.is_file() or (os.access(place, os.R_OK) and any(path.is_file() for path in place.rglob("*"))):
                yield f"{place} is not empty"


def rights() -> Iterator[str]:
    """Yields programs that run with another user's rights, and what anybody may write."""
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if os.path.join(folder, name) not in ELSEWHERE]  # noqa: PTH118  every file
        for path in (os.path.join(folder, name) for name in (*names, *files)):  # noqa: PTH118
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                yield f"{path} is setuid or setgid"
            if not stat.S_ISLNK(mode) and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                yield f"{path} can be written by anybody"


def listed() -> Iterator[str]:
    """Yields what is installed and does not stand in the list, and what stands there and is not installed."""
    parts = json.loads(SBOM.read_text(encoding="utf-8"))["components"]
    told = {_name(part["name"]): part["version"] for part in parts if part["purl"].startswith("pkg:pypi/")}
    there = {_name(one.metadata["Name"]): one.version for one in distributions()}
    there.pop("trimodal-inference-container", None)
    for name in sorted(told.keys() | there.keys()):
        if told.get(name) != there.get(name):
            yield f"sbom.json tells {name} {told.get(name)}, and {there.get(name)} is installed"
    for kind in ("pkg:deb/debian/python3.11@", "pkg:deb/debian/libc6@", "pkg:generic/openjdk@", "pkg:maven/io.netty/"):
        if not any(part["purl"].startswith(kind) for part in parts):
            yield f"sbom.json has no {kind}"


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
