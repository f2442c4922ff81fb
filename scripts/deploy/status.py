"""What an endpoint is doing now, in a few lines."""

from __future__ import annotations

import argparse
import json

from botocore.exceptions import ClientError

from deploy import alarms
from deploy.errors import DeployError
from deploy.rollout import Cloud
from deploy.stack import State

ENDED = ("Failed", "OutOfService", "UpdateRollbackFailed")


def status(cloud: Cloud, _options: argparse.Namespace) -> None:
    """Prints stack, endpoint, release and alarms.

    Raises:
        DeployError: there is no such endpoint, or it does not serve.
    """
    state = cloud.stack.get()
    print(f"stack     {state.status}")
    serving = _endpoint(cloud, state)
    _release(state)
    _alarms(cloud)
    if serving in ENDED or state.status.endswith("_FAILED"):
        raise DeployError(f"{cloud.name} needs help; the troubleshooting table of scripts/deploy/README.md has causes.")


def _endpoint(cloud: Cloud, state: State) -> str:
    name = state.outputs.get("EndpointName", cloud.name)
    try:
        found = cloud.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as err:
        if "Could not find" in str(err):
            print("endpoint  not made yet")
            return "Creating"
        raise
    print(f"endpoint  {found['EndpointStatus']}, {name}, config {found['EndpointConfigName']}")
    for variant in found.get("ProductionVariants", ()):
        count, wanted = variant.get("CurrentInstanceCount"), variant.get("DesiredInstanceCount")
        print(f"variant   {variant['VariantName']}" + (f", {count} of {wanted} instances" if wanted else ""))
    if found.get("FailureReason"):
        print(f"failure   {found['FailureReason']}")
    serving: str = found["EndpointStatus"]
    return serving


def _release(state: State) -> None:
    print(f"hosting   {state.parameters['Hosting']}, {state.parameters['Accelerator']}")
    for title, key in (("release", "Release"), ("previous", "PreviousRelease")):
        if text := state.parameters.get(key):
            release = json.loads(text)
            sets = " ".join(f"{name}={value}" for name, value in release.get("environment", {}).items())
            print(f"{title:<9} {release.get('image')} {release.get('model')} {sets}".rstrip())
    print(f"trial     {'yes: promote or rollback' if state.parameters.get('PreviousRelease') else 'no'}")


def _alarms(cloud: Cloud) -> None:
    found = alarms.states(cloud.client("cloudwatch"), cloud.name)
    for name, (value, reason) in found.items():
        print(f"alarm     {name} {value}" + (f": {reason}" if value == "ALARM" else ""))
