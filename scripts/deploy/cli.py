"""The command `scripts/deploy/deploy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from deploy import calls, package, rollout, scoring, status
from deploy.errors import DeployError
from deploy.options import parser
from deploy.release import S3Path
from deploy.rollout import Cloud
from deploy.stack import Stack


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Exit status: 0 done, 1 it could not be done (one message says what to do), 2 wrong usage.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    options = parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except DeployError as err:
        return _failed(str(err))
    except ClientError as err:
        return _failed(_refused(err.response["Error"]))
    except BotoCoreError as err:
        return _failed(f"{str(err).rstrip('.')}. {_REMEDIES.get(type(err).__name__, '')}")
    except KeyboardInterrupt:
        return _failed("Stopped waiting; what was started goes on. `status` shows it.")
    except OSError as err:
        return _failed(f"{err.filename}: {err.strerror}.")
    return 0


_REMEDIES = {
    "NoCredentialsError": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "NoRegionError": "Set AWS_DEFAULT_REGION, or name it with --region.",
    "ProfileNotFound": "See ~/.aws/config.",
    "EndpointConnectionError": "Check the network and the region.",
}


def _failed(message: str) -> int:
    sys.stdout.flush()
    print(f"deploy: {message.strip()}", file=sys.stderr)
    return 1


def _refused(error: dict[str, str]) -> str:
    text = f"AWS refused: {error.get('Message', '')} ({error.get('Code')})."
    if "AccessDenied" in error.get("Code", "") or "not authorized" in error.get("Message", ""):
        text += " scripts/deploy/README.md lists the permissions that a deployer needs."
    return text


def _cloud(options: argparse.Namespace) -> Cloud:
    import boto3
    from botocore.exceptions import NoRegionError

    boto = boto3.session.Session(region_name=options.region)
    if not boto.region_name:
        raise NoRegionError
    return Cloud(boto, Stack(boto.client("cloudformation"), options.name, options.poll), options.poll)


def _on_cloud(command: Callable[[Cloud, argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    return lambda options: command(_cloud(options), options)


def _package(options: argparse.Namespace) -> None:
    digest = package.build(options.model_dir, options.out, prepared=options.prepare)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    if options.upload:
        import boto3

        folder = S3Path.parse(options.upload, "--upload")
        print(calls.upload(boto3.client("s3"), options.out, folder).url)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "package": _package,
    "up": _on_cloud(rollout.up),
    "canary": _on_cloud(rollout.canary),
    "promote": _on_cloud(rollout.promote),
    "rollback": _on_cloud(rollout.rollback),
    "status": _on_cloud(status.status),
    "invoke": _on_cloud(scoring.invoke),
    "batch": _on_cloud(scoring.batch),
    "down": _on_cloud(rollout.down),
}


if __name__ == "__main__":
    sys.exit(main())
