"""The CloudFormation stack of one endpoint: every change of an endpoint is an update of its stack."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from deploy.errors import DeployError

FAILED_STATES = ("FAILED", "ROLLBACK_COMPLETE")
GONE = "does not exist"
NOTHING = "No updates are to be performed"


@dataclass(frozen=True)
class State:
    """A stack as CloudFormation describes it."""

    status: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def busy(self) -> bool:
        """Whether a change is going on."""
        return self.status.endswith("_IN_PROGRESS")

    @property
    def failed(self) -> bool:
        """Whether the last change failed, and perhaps was taken back."""
        return self.status.endswith(FAILED_STATES)


class Stack:
    """One endpoint's stack; it bears the endpoint's name.

    Args:
        client: boto3's CloudFormation client.
        name: the endpoint's name.
        poll: seconds between two looks while waiting.
    """

    def __init__(self, client: Any, name: str, poll: float) -> None:
        self.client, self.name, self.poll = client, name, poll
        self._seen: set[str] = set()

    def find(self) -> State | None:
        """Returns the stack's state, or None when there is none."""
        try:
            found = self.client.describe_stacks(StackName=self.name)["Stacks"][0]
        except ClientError as err:
            if GONE in str(err):
                return None
            raise
        return State(
            found["StackStatus"],
            {item["ParameterKey"]: item["ParameterValue"] for item in found.get("Parameters", ())},
            {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", ())},
        )

    def get(self) -> State:
        """Returns the stack's state.

        Raises:
            DeployError: there is no such stack.
        """
        state = self.find()
        if state is None:
            raise DeployError(
                f"There is no endpoint {self.name!r} in this account and region; `up {self.name}` makes it."
            )
        return state

    def ready(self) -> State:
        """Returns the stack's state.

        Raises:
            DeployError: there is no such stack, or it cannot be changed now.
        """
        state = self.get()
        if state.busy:
            raise DeployError(f"{self.name} is {state.status}; wait for its end (`status {self.name}`) and try again.")
        if state.status == "UPDATE_ROLLBACK_FAILED":
            raise DeployError(
                f"{self.name} is {state.status}; run `aws cloudformation continue-update-rollback --stack-name "
                f"{self.name}`, then try again."
            )
        if state.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"):
            raise DeployError(f"{self.name} was never made ({state.status}); run `down {self.name}`, then `up` again.")
        return state

    def create(self, template: str, parameters: Mapping[str, str]) -> State:
        """Makes the stack and waits until it stands.

        Raises:
            DeployError: it could not be made; tells the first cause.
        """
        self.client.create_stack(
            StackName=self.name,
            TemplateBody=template,
            Parameters=_listed(parameters),
            Capabilities=["CAPABILITY_IAM"],
        )
        return self.wait()

    def update(self, state: State, template: str, changes: Mapping[str, str]) -> State:
        """Updates the stack and waits until that is done.

        Args:
            state: the stack before.
            template: the template after.
            changes: the parameters that change; the others stay as they are.

        Raises:
            DeployError: the update failed or was rolled back; tells the first cause.
        """
        self._events()  # those before are no news
        known = re.findall(r"^  (\w+):$", template, re.MULTILINE)  # an older stack may have other parameters
        parameters = {key: value for key, value in state.parameters.items() if key in known} | dict(changes)
        try:
            self.client.update_stack(
                StackName=self.name,
                TemplateBody=template,
                Parameters=_listed(parameters),
                Capabilities=["CAPABILITY_IAM"],
            )
        except ClientError as err:
            if NOTHING in str(err):
                print(f"{self.name}: nothing to change")
                return state
            raise
        return self.wait()

    def delete(self) -> None:
        """Deletes the stack and waits until it is gone.

        Raises:
            DeployError: something could not be deleted; tells what.
        """
        self._events()
        self.client.delete_stack(StackName=self.name)
        self.wait(deleting=True)

    def wait(self, *, deleting: bool = False) -> State:
        """Prints each event until the change has ended.

        Raises:
            DeployError: it failed or was rolled back; tells the first cause.
        """
        cause = ""
        while True:
            state = self.find()
            if state is None and deleting:
                return State("DELETE_COMPLETE", {}, {})
            for event in self._events():
                print(_line(event), flush=True)
                if event["ResourceStatus"].endswith("_FAILED") and not cause:
                    cause = f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', 'no reason given')}"
            if state is None:
                raise DeployError(f"The stack of {self.name} is gone; somebody else has deleted it.")
            if not state.busy:
                break
            time.sleep(self.poll)
        if state.failed:
            raise DeployError(f"{self.name} is {state.status}. {cause or 'Its events in the console tell why.'}")
        return state

    def _events(self) -> list[dict[str, Any]]:
        try:
            events = self.client.describe_stack_events(StackName=self.name)["StackEvents"]
        except ClientError as err:
            if GONE in str(err):
                return []
            raise
        news = [event for event in reversed(events) if event["EventId"] not in self._seen]
        self._seen.update(event["EventId"] for event in news)
        return news


def _listed(parameters: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]


def _line(event: Mapping[str, Any]) -> str:
    reason = event.get("ResourceStatusReason")
    what = f"{event.get('LogicalResourceId', '')} {event['ResourceStatus']}"
    return f"{event['Timestamp']:%H:%M:%S} {what}{f': {reason}' if reason else ''}"
