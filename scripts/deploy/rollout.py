"""The commands that change an endpoint: each is one update of its stack."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from deploy import alarms
from deploy.errors import DeployError
from deploy.release import Release, S3Path
from deploy.stack import Stack, State

LONGEST_UPDATE = 28_800
"""Seconds that SageMaker allows an update at most."""


@dataclass(frozen=True)
class Cloud:
    """What a command works with: one endpoint's stack and the clients that it needs."""

    boto: Any
    stack: Stack
    poll: float

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.stack.name

    def client(self, service: str) -> Any:
        """Returns boto3's client of a service."""
        return self.boto.client(service)

    @property
    def partition(self) -> str:
        """AWS's name for its part of the world."""
        partition: str = self.boto.get_partition_for_region(self.boto.region_name)
        return partition


def up(cloud: Cloud, options: argparse.Namespace) -> None:
    """Makes the endpoint, or changes what is named; a changed release takes over at once.

    Raises:
        DeployError: an option is missing or cannot be used, or the change failed.
    """
    changes = _sizes(options)
    if cloud.stack.find() is None:
        if not (options.image and options.model):
            raise DeployError(f"{cloud.name} is new; name what it serves with --image and --model.")
        release = Release(options.image, options.model).changed(None, None, options.set, ())
        names = {"EndpointName": cloud.name, **release.parameters(cloud.partition)}
        cloud.stack.create(release.template(), {**names, **changes})
    else:
        before = cloud.stack.ready()
        release = Release.from_json(before.parameters["Release"])
        release = release.changed(options.image, options.model, options.set, options.unset)
        shift = {"TrafficMode": "ALL_AT_ONCE", "AutoRollback": "true"} if _differs(release, before) else {}
        parameters = {**release.parameters(cloud.partition), **shift, **changes}
        cloud.stack.update(before, release.template(), parameters)
    print(f"{cloud.name} is up; try `invoke {cloud.name} FILE`")


def canary(cloud: Cloud, options: argparse.Namespace) -> None:
    """Moves traffic to another release in steps; alarms take it back.

    Raises:
        DeployError: there is nothing to change, or it cannot be done safely, or it was rolled back.
    """
    before = cloud.stack.ready()
    _check_shift(before, options)
    current = Release.from_json(before.parameters["Release"])
    release = current.changed(options.image, options.model, options.set, options.unset)
    if release == current:
        raise DeployError(
            "The endpoint serves this release already; change it with --image, --model, --set or --unset."
        )
    _check_alarms(cloud)
    mode = "LINEAR" if options.linear else "CANARY"
    print(f"{cloud.name}: {mode.lower()} shift, {options.percent} % first, {options.wait} s a step")
    cloud.stack.update(
        before,
        release.template(),
        {
            **release.parameters(cloud.partition),
            "PreviousRelease": current.to_json(),
            "TrafficMode": mode,
            "TrafficPercent": str(options.percent),
            "TrafficWaitSeconds": str(options.wait),
            "AutoRollback": "true",
        },
    )
    print(
        f"{cloud.name} serves the new release on trial; end it with `promote {cloud.name}` or `rollback {cloud.name}`"
    )


def promote(cloud: Cloud, _options: argparse.Namespace) -> None:
    """Ends the trial: the release stays.

    Raises:
        DeployError: nothing is on trial.
    """
    before = cloud.stack.ready()
    if not before.parameters.get("PreviousRelease"):
        raise DeployError(f"Nothing is on trial on {cloud.name}; `canary` starts a trial.")
    release = Release.from_json(before.parameters["Release"])
    cloud.stack.update(before, release.template(), {"PreviousRelease": ""})
    print(f"{cloud.name}: {release.image} with {release.model} is accepted")


def rollback(cloud: Cloud, _options: argparse.Namespace) -> None:
    """Ends a running update, or the trial: the release before it serves again.

    Raises:
        DeployError: there is nothing to roll back to, or it failed.
    """
    before = cloud.stack.get()
    if before.status == "UPDATE_IN_PROGRESS":
        _abort(cloud)
        return
    before = cloud.stack.ready()
    if not before.parameters.get("PreviousRelease"):
        raise DeployError(f"Nothing is on trial on {cloud.name}; set an older release with `up` or `canary`.")
    release = Release.from_json(before.parameters["PreviousRelease"])
    # all at once and whatever the alarms say: they may be the reason
    shift = {"PreviousRelease": "", "TrafficMode": "ALL_AT_ONCE", "AutoRollback": "false"}
    cloud.stack.update(before, release.template(), {**release.parameters(cloud.partition), **shift})
    print(f"{cloud.name} serves {release.image} with {release.model} again")


def down(cloud: Cloud, options: argparse.Namespace) -> None:
    """Deletes the endpoint; models in S3, images and logs stay.

    Raises:
        DeployError: it was not confirmed, or something could not be deleted.
    """
    if cloud.stack.find() is None:
        print(f"There is no endpoint {cloud.name!r}; nothing to do")
        return
    if not options.yes:
        raise DeployError(f"`down` deletes {cloud.name} and its alarms for good; confirm with --yes.")
    cloud.stack.delete()
    print(f"{cloud.name} is deleted; models in S3, images in ECR and logs are still there")


def _sizes(options: argparse.Namespace) -> dict[str, str]:
    """Returns the parameters that the options name."""
    named = {
        "Hosting": options.hosting,
        "Accelerator": options.accelerator,
        "InstanceType": options.instance_type,
        "MinInstances": options.min,
        "MaxInstances": options.max,
        "AlarmTopicArn": options.alarm_topic,
    }
    if options.data:
        data = S3Path.parse(options.data, "--data")
        named |= {"DataBucket": data.bucket, "DataPrefix": data.key.rstrip("/") + "/"}
    for text in options.parameter:
        name, equals, value = text.partition("=")
        if not equals:
            raise DeployError(f"--parameter {text!r} must be NAME=VALUE, a parameter of scripts/deploy/endpoint.yaml.")
        named[name] = value
    return {name: str(value) for name, value in named.items() if value is not None}


def _differs(release: Release, before: State) -> bool:
    return release.to_json() != before.parameters["Release"]


def _check_shift(before: State, options: argparse.Namespace) -> None:
    if before.parameters.get("PreviousRelease"):
        raise DeployError("A release is on trial already; end that with `promote` or `rollback` first.")
    if before.parameters["Hosting"] == "serverless":
        raise DeployError("Serverless endpoints cannot shift traffic; try the release on a second endpoint, then `up`.")
    if int(before.parameters["MinInstances"]) < 2:
        raise DeployError("Shifting traffic in steps takes two instances; run `up` with --min 2 first.")
    steps = -(-100 // options.percent) if options.linear else 2
    seconds = steps * options.wait + int(before.parameters["TerminationWaitSeconds"])
    if seconds > LONGEST_UPDATE:
        raise DeployError(f"{steps} steps would take {seconds} s of at most {LONGEST_UPDATE}; lower --wait.")


def _check_alarms(cloud: Cloud) -> None:
    client = cloud.client("cloudwatch")
    found = alarms.states(client, cloud.name)
    if found.get(alarms.ABORT, ("OK", ""))[0] == "ALARM":
        alarms.set_abort(client, cloud.name, on=False)
    firing = [name for name, (state, _) in found.items() if state == "ALARM" and name != alarms.ABORT]
    if firing:
        raise DeployError(f"Alarms are on ({', '.join(firing)}), and would roll any update back; mend that first.")


def _abort(cloud: Cloud) -> None:
    client = cloud.client("cloudwatch")
    print(f"{cloud.name}: an update is running; its abort alarm is set, SageMaker moves the traffic back")
    alarms.set_abort(client, cloud.name, on=True)
    try:
        state = cloud.stack.wait()
    except DeployError:
        state = cloud.stack.get()
        if state.status != "UPDATE_ROLLBACK_COMPLETE":
            raise
    finally:
        alarms.set_abort(client, cloud.name, on=False)
    if state.status != "UPDATE_ROLLBACK_COMPLETE":
        raise DeployError(f"The update ended before the alarm was seen; run `rollback {cloud.name}` again.")
    print(f"{cloud.name}: the update is rolled back")
