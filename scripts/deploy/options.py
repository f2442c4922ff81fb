"""The options of each command, with their help."""

from __future__ import annotations

import argparse
from pathlib import Path

Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command."""
    top = argparse.ArgumentParser(
        prog="scripts/deploy/deploy",
        description="Deploys the container to SageMaker. One endpoint is one CloudFormation stack of the same name.",
        epilog="Credentials and region are boto3's own: AWS_PROFILE, AWS_DEFAULT_REGION and so on.",
    )
    commands = top.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _package(commands)
    _up(commands)
    _canary(commands)
    _on_endpoint(commands, "promote", "end the trial that `canary` began: the new release stays")
    _on_endpoint(commands, "rollback", "abort the running update, or end the trial: the release before serves again")
    _on_endpoint(commands, "status", "print stack, endpoint, release and alarms")
    _invoke(commands)
    _batch(commands)
    down = _on_endpoint(commands, "down", "delete the endpoint; models, images and logs stay")
    down.add_argument("--yes", action="store_true", help="really do it")
    return top


def _command(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _on_endpoint(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    command = _command(commands, name, text)
    command.add_argument("name", metavar="NAME", help="the endpoint, which is also the stack")
    command.add_argument("--region", help="AWS region (default: boto3's)")
    command.add_argument("--poll", type=float, default=10, metavar="S", help="seconds between looks (default: 10)")
    return command


def _release(command: argparse.ArgumentParser) -> None:
    command.add_argument("--image", metavar="URI", help="image in ECR, with tag or digest")
    command.add_argument("--model", metavar="S3", help="s3://… of model.tar.gz; multi-model: of the prefix, with a /")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set a variable of the "
                         "container; again for more")  # fmt: skip
    command.add_argument("--unset", action="append", default=[], metavar="NAME", help="take one out again")


def _package(commands: Commands[argparse.ArgumentParser]) -> None:
    command = _command(commands, "package", "pack a model directory into model.tar.gz, and upload it if asked")
    command.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    command.add_argument("--out", type=Path, default=Path("model.tar.gz"), metavar="FILE",
                         help="the archive (default: model.tar.gz)")  # fmt: skip
    command.add_argument("--prepare", action="store_true", help="optimize first with `trimodal prepare`; do it on the "
                         "kind of machine that will serve")  # fmt: skip
    command.add_argument(
        "--upload", metavar="S3", help="upload below this s3://BUCKET/PREFIX, under the archive's hash"
    )


def _up(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "make the endpoint, or change what is named; a changed release takes over at once"
    command = _on_endpoint(commands, "up", text)
    _release(command)
    command.add_argument("--hosting", choices=("real-time", "serverless", "asynchronous", "multi-model"))
    command.add_argument("--accelerator", choices=("cpu", "gpu"))
    command.add_argument("--instance-type", metavar="TYPE", help="default: ml.c7i.xlarge, or ml.g6.xlarge with gpu")
    command.add_argument("--min", type=int, metavar="N", help="instances at least (default: 2)")
    command.add_argument("--max", type=int, metavar="N", help="instances at most (default: 4)")
    command.add_argument("--data", metavar="S3", help="s3://BUCKET/PREFIX/ for asynchronous and batch data")
    command.add_argument("--alarm-topic", metavar="ARN", help="SNS topic that alarms are sent to")
    command.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE",
                         help="any other parameter of endpoint.yaml, such as LatencyThresholdMs=300")  # fmt: skip


def _canary(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "move traffic to another release in steps; an alarm takes all of it back"
    command = _on_endpoint(commands, "canary", text)
    _release(command)
    command.add_argument("--linear", action="store_true", help="equal steps instead of one small step and the rest")
    command.add_argument("--percent", type=_within(10, 50), default=10, metavar="P", help="size of a step, 10 to 50 %% "
                         "of the instances (default: 10)")  # fmt: skip
    command.add_argument("--wait", type=_within(60, 3600), default=600, metavar="S",
                         help="seconds that a step is watched, 60 to 3600 (default: 600)")  # fmt: skip


def _invoke(commands: Commands[argparse.ArgumentParser]) -> None:
    command = _on_endpoint(commands, "invoke", "send a file to the endpoint and print the answer")
    command.add_argument("file", metavar="FILE", help="the request's body; - for standard input")
    command.add_argument("--content-type", metavar="TYPE", help="default: by the file's name")
    command.add_argument("--accept", default="application/json", metavar="TYPE", help="default: application/json")
    command.add_argument("--target-model", metavar="KEY", help="multi-model: the archive below the prefix")
    command.add_argument("--timeout", type=float, default=900, metavar="S", help="asynchronous: seconds to wait for "
                         "the answer (default: 900)")  # fmt: skip


def _batch(commands: Commands[argparse.ArgumentParser]) -> None:
    command = _on_endpoint(commands, "batch", "score files in S3 with the model that the endpoint serves")
    command.add_argument("--input", required=True, metavar="S3", help="s3://… prefix or file, below the stack's --data")
    command.add_argument("--output", required=True, metavar="S3", help="s3://… prefix, below the stack's --data")
    command.add_argument("--content-type", metavar="TYPE", help="default: by the input's name")
    command.add_argument("--accept", default="application/jsonlines", metavar="TYPE",
                         help="default: application/jsonlines")  # fmt: skip
    command.add_argument("--instance-type", default="ml.c5.xlarge", metavar="TYPE", help="default: ml.c5.xlarge")
    command.add_argument("--instances", type=_within(1, 100), default=1, metavar="N", help="default: 1")


def _within(low: int, high: int) -> type[int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return number  # type: ignore[return-value]
