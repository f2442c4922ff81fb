"""The image's labels, and buildspec.yml, run as CodeBuild runs it.

docker, aws and the slow scripts write down that they were called.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPEC = yaml.safe_load((ROOT / "buildspec.yml").read_text(encoding="utf-8"))
SLOW = ("check", "test", "build", "smoke")
REAL = ("scan", "push", "_engine.sh", "_ecr.sh")
TOOLS = ("bash", "env", "dirname", "cat")
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
IMAGE = f"{ECR}/team/trimodal:0123456789ab-cpu-full"
CODEBUILD = {"CODEBUILD_RESOLVED_SOURCE_VERSION": "0123456789abcdef0123456789abcdef01234567"}

RECORDER = """#!/usr/bin/env bash
echo "{name} $*" >>"$CALLS"
[[ "{name} $*" != $FAILING* ]] || exit 1
case "$*" in
  *get-login-password*) echo secret ;;
  *login*) [[ $(cat) == secret ]] ;;
  *describe-image-scan-findings*) echo "$FINDINGS" ;;
  *describe-images*) echo "$THERE" >&2; [[ -z $THERE ]] ;;
esac
"""


@pytest.fixture
def build(tmp_path):
    """Runs the phases: `build(**environment)` returns the calls, and whether the build succeeded."""
    scripts, tools = tmp_path / "scripts", tmp_path / "tools"
    scripts.mkdir()
    tools.mkdir()
    for name in REAL:
        shutil.copy(ROOT / "scripts" / name, scripts / name)
    for name in (*(scripts / name for name in SLOW), tools / "docker", tools / "aws"):
        name.write_text(RECORDER.format(name=name.relative_to(tmp_path).as_posix().removeprefix("tools/")))
        name.chmod(0o755)
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name))

    def run(failing="nothing", findings="None None", there="ImageNotFoundException", **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        known = {**SPEC["env"]["variables"], **CODEBUILD, **variables}
        known |= {"PATH": str(tools), "CALLS": str(calls), "FAILING": failing, "FINDINGS": findings, "THERE": there}
        done = subprocess.run(
            [str(tools / "bash"), "-uc", program()], cwd=tmp_path, env=known, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert "command not found" not in done.stderr
        assert "unbound variable" not in done.stderr
        return calls.read_text().splitlines(), done.returncode == 0, done.stdout + done.stderr

    return run


def program():
    """The phases as CodeBuild runs them: one shell, a phase ends at its first failure, post_build follows build."""
    lines = ["export CODEBUILD_BUILD_SUCCEEDING=1"]
    for phase in ("install", "pre_build", "build", "post_build"):
        failed = "export CODEBUILD_BUILD_SUCCEEDING=0; break" if phase == "build" else "exit 1"
        lines.append("while :; do :")
        for command in SPEC["phases"][phase].get("commands", ()):
            lines += [command, f"[[ $? == 0 ]] || {{ {failed}; }}"]
        lines.append("break; done")
    return "\n".join([*lines, "[[ $CODEBUILD_BUILD_SUCCEEDING == 1 ]]"])


def test_phases_are_those_that_codebuild_knows():
    assert list(SPEC["phases"]) == ["install", "pre_build", "build", "post_build"]
    assert [item["identifier"] for item in SPEC["batch"]["build-list"]] == ["cpu", "gpu"]
    for item in SPEC["batch"]["build-list"]:
        assert set(item.get("env", {}).get("variables", {})) <= set(SPEC["env"]["variables"])


def test_an_image_is_checked_tested_built_tried_scanned_and_pushed(build):
    calls, succeeded, printed = build(ECR_REPOSITORY=f"{ECR}/team/trimodal")
    assert succeeded, printed
    quarantine = "--repository-name team/trimodal --image-id imageTag=quarantine-0123456789ab-cpu-full"
    counts = "imageScanFindings.findingSeverityCounts.[CRITICAL, HIGH]"
    login = ["aws ecr get-login-password", f"docker login --username AWS --password-stdin {ECR}"]
    expected = [
        "scripts/check ",
        "scripts/test ",
        f"scripts/build {IMAGE}",
        f"scripts/smoke {IMAGE}",
        "docker info",
        f"docker tag {IMAGE} {ECR}/team/trimodal:quarantine-0123456789ab-cpu-full",
        *login,
        f"docker push {ECR}/team/trimodal:quarantine-0123456789ab-cpu-full",
        f"aws ecr start-image-scan {quarantine}",
        f"aws ecr wait image-scan-complete {quarantine}",
        f"aws ecr describe-image-scan-findings {quarantine} --output text --query {counts}",
        "docker info",
        "aws ecr describe-images --repository-name team/trimodal --image-ids imageTag=0123456789ab-cpu-full",
        *login,
        f"docker push {IMAGE}",
    ]
    for pair in (6, 14):  # the two sides of a pipe are called at once
        calls[pair : pair + 2] = sorted(calls[pair : pair + 2])
    assert calls == expected


def test_without_a_repository_nothing_leaves(build):
    calls, succeeded, printed = build()
    assert succeeded, printed
    assert calls == [
        "scripts/check ",
        "scripts/test ",
        "scripts/build trimodal-inference:0123456789ab-cpu-full",
        "scripts/smoke trimodal-inference:0123456789ab-cpu-full",
    ]


def test_the_gpu_image_has_a_tag_of_its_own_and_is_not_tried_here(build):
    variables = SPEC["batch"]["build-list"][1]["env"]["variables"]
    calls, succeeded, printed = build(ECR_REPOSITORY=f"{ECR}/trimodal", **variables)
    assert succeeded, printed
    assert calls[-1] == f"docker push {ECR}/trimodal:0123456789ab-gpu-full"
    assert not [call for call in calls if call.startswith("scripts/smoke")]


@pytest.mark.parametrize(
    "failing",
    ["scripts/check", "scripts/test", "scripts/build", "scripts/smoke", "docker tag", "docker push *quarantine",
     "docker login", "aws ecr wait", "aws ecr describe-image-scan", "aws ecr describe-images", "aws ecr get-login"],
)  # fmt: skip
def test_nothing_is_pushed_after_a_failure(build, failing):
    calls, succeeded, _ = build(failing, ECR_REPOSITORY=f"{ECR}/team/trimodal")
    assert not succeeded
    assert f"docker push {IMAGE}" not in calls


@pytest.mark.parametrize(("findings", "passes"), [("0 3", True), ("None 4", False), ("1 None", False), ("None", False)])
def test_vulnerable_images_stay_in_quarantine(build, findings, passes):
    calls, succeeded, _ = build(findings=findings, ECR_REPOSITORY=f"{ECR}/team/trimodal", SCAN_HIGH="3")
    assert (succeeded, f"docker push {IMAGE}" in calls) == (passes, passes)


def test_a_tag_is_never_overwritten(build):
    calls, succeeded, printed = build(there="", ECR_REPOSITORY=f"{ECR}/team/trimodal")
    assert not succeeded
    assert "push refused" in printed
    assert f"docker push {IMAGE}" not in calls


def test_the_image_says_that_it_can_be_told_its_port():
    labels = re.findall(r"^LABEL (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in labels
