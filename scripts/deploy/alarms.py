"""The endpoint's alarms: what they say, and the one that aborts a running update."""

from __future__ import annotations

from typing import Any

ABORT = "abort"


def states(client: Any, name: str) -> dict[str, tuple[str, str]]:
    """Returns state and reason of each alarm, by the alarm's name without the endpoint's.

    Args:
        client: boto3's CloudWatch client.
        name: the endpoint's name.
    """
    found: dict[str, tuple[str, str]] = {}
    for page in client.get_paginator("describe_alarms").paginate(AlarmNamePrefix=f"{name}-"):
        for alarm in page["MetricAlarms"]:
            found[alarm["AlarmName"].removeprefix(f"{name}-")] = alarm["StateValue"], alarm.get("StateReason", "")
    return found


def set_abort(client: Any, name: str, *, on: bool) -> None:
    """Sets the alarm that rolls a running update back, or takes it away."""
    reason = "`deploy rollback` was called" if on else "no update is running"
    client.set_alarm_state(AlarmName=f"{name}-{ABORT}", StateValue="ALARM" if on else "OK", StateReason=reason)
