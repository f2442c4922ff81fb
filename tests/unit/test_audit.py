"""The audit of the locks fails where a pin is known to be vulnerable, and says by what data it judged."""

from __future__ import annotations

import json
from datetime import date

import pytest

import audit

PIP_AUDIT = """
import json, sys
text = open(sys.argv[sys.argv.index("-r") + 1]).read().split()
assert "--strict" not in sys.argv
known = {"django==3.2": "PYSEC-1", "idna==3.20": "PYSEC-2"} if %r == "reached" else {}
print(json.dumps({"dependencies": [
    {"name": pin.split("==")[0], "version": pin.split("==")[1], "vulns": [{"id": known[pin], "fix_versions": ["9"]}]}
    if pin in known else {"name": pin.split("==")[0], "skip_reason": "not found"} for pin in text
]}))
"""


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Puts a pip-audit before ours: its service is `reached`, `unknown` (it skips what it does not know) or `gone`."""

    def install(kind):
        (tmp_path / "pip_audit").mkdir()
        (tmp_path / "pip_audit" / "__init__.py").touch()  # without it an installed one would come first
        program = "raise SystemExit('no route')" if kind == "gone" else PIP_AUDIT % kind
        (tmp_path / "pip_audit" / "__main__.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


@pytest.fixture
def lock(tmp_path):
    def write(text):
        path = tmp_path / "lock.txt"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("kind", ["unknown", "gone"])
@pytest.mark.parametrize(
    ("pin", "found"),
    [
        ("aiohttp==3.9.1", "PYSEC-2024-26"),
        ("pyarrow==14.0.0", "PYSEC-2023-238"),
        ("urllib3==2.0.6", "PYSEC-2023-212"),
        ("torch==2.9.1", "GHSA-63cw-57p8-fm3p"),
        ("starlette==1.0.0", "GHSA-86qp-5c8j-p5mr"),
        ("pyarrow==0.13.0", None),
        ("aiohttp==3.14.5", None),
    ],
)
def test_out_of_reach_the_committed_advisories_judge(service, lock, capsys, *, kind, pin, found):
    service(kind)
    assert audit.main([lock(f"{pin} \\\n    --hash=sha256:0\n    # via boto3\nsix==1.17.0\n")]) == (found is not None)
    printed = capsys.readouterr().out
    assert "cannot be reached from here" in printed
    assert json.loads(audit.ADVISORIES.read_text())["date"] in printed
    assert (f"{pin.replace('==', ' ')} (lock.txt): {found}" in printed) == (found is not None)


def test_within_reach_the_service_judges(service, lock, capsys):
    service("reached")
    assert audit.main([lock("idna==3.20\nurllib3==2.8.0\n")]) == 1
    assert "idna 3.20 (lock.txt): PYSEC-2, fixed in 9" in capsys.readouterr().out
    assert audit.main([lock("urllib3==2.8.0\n")]) == 0
    assert "PyPI's advisories of today: 0 findings" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["requests", "requests>=2", "requests @ file:///tmp/x", "-e ."])
def test_what_is_not_pinned_is_refused(lock, line):
    with pytest.raises(ValueError, match="is not pinned"):
        list(audit.read_pins(lock(line).read_text()))


def test_locks_that_disagree_are_refused(lock):
    with pytest.raises(ValueError, match="different versions"):
        audit.main([lock("six==1.17.0\nsix==1.16.0\n")])


def test_every_lock_of_the_images_is_read(monkeypatch, capsys):
    monkeypatch.setattr(audit, "ask", lambda _locks: [])
    assert audit.main(audit.LOCKS) == 0
    assert int(capsys.readouterr().out.split()[0]) > 150


def test_the_committed_advisories_are_well_formed():
    known = json.loads(audit.ADVISORIES.read_text())
    assert date.fromisoformat(known["date"]) <= date.today()  # noqa: DTZ011
    for one in known["advisories"]:
        assert set(one) == {"package", "id", "affected", "fixed"}
        for part in one["fixed"].split(", "):
            assert not list(audit.compare([(one["package"], part)], [one])), "what fixes it is not affected"
