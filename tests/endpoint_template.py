"""Reads scripts/deploy/endpoint.yaml: with its conditions decided, and the names of the metrics that it uses."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from deploy.release import TEMPLATE

_SEARCH = re.compile(r'(\w+)="([^"]+)"')
ABSENT = object()
REQUIRED = {
    "EndpointName": "demo",
    "ImageUri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/trimodal-inference:one",
    "ImageRepositoryArn": "arn:aws:ecr:eu-west-1:123456789012:repository/trimodal-inference",
    "ModelBucket": "models",
    "ModelKey": "demo/model.tar.gz",
}
PSEUDO = {"AWS::NoValue": ABSENT, "AWS::Partition": "aws", "AWS::Region": "eu-west-1", "AWS::AccountId": "123456789012"}


class _Loader(yaml.SafeLoader):
    """Reads `!Name value` as `{"!Name": value}`."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {f"!{suffix}": loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {f"!{suffix}": loader.construct_sequence(node, deep=True)}
    return {f"!{suffix}": loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _tagged)


def load(text: str | None = None) -> dict[str, Any]:
    """Returns the template as it is written."""
    return yaml.load(text or TEMPLATE.read_text(encoding="utf-8"), Loader=_Loader)


def resources(text: str | None = None, **parameters: str) -> dict[str, dict[str, Any]]:
    """Returns the resources that a stack with these parameters has; references to them stay as their names."""
    template = load(text)
    values = {name: str(item.get("Default", "")) for name, item in template["Parameters"].items()}
    values |= {**PSEUDO, **REQUIRED, **parameters}
    resolve = _Resolver(template["Conditions"], values)
    found = template["Resources"].items()
    return {name: resolve(item) for name, item in found if resolve.holds(item.get("Condition"))}


class _Resolver:
    def __init__(self, conditions: dict[str, Any], values: dict[str, Any]) -> None:
        self.conditions, self.values = conditions, values

    def holds(self, condition: Any) -> bool:
        if isinstance(condition, str):
            condition = self.conditions[condition]
        if condition is None:
            return True
        ((function, argument),) = condition.items()
        if function == "!Equals":
            return len({str(self(item)) for item in argument}) == 1
        return {
            "!Not": lambda: not self.holds(argument[0]),
            "!And": lambda: all(self.holds(item) for item in argument),
            "!Condition": lambda: self.holds(argument),
        }[function]()

    def __call__(self, node: Any) -> Any:
        if isinstance(node, list):
            return [item for item in map(self, node) if item is not ABSENT]
        if not isinstance(node, dict):
            return node
        if len(node) == 1 and (name := next(iter(node))).startswith("!"):
            return self._function(name, node[name])
        return {key: value for key, item in node.items() if (value := self(item)) is not ABSENT}

    def _function(self, name: str, argument: Any) -> Any:
        if name == "!If":
            return self(argument[1] if self.holds(argument[0]) else argument[2])
        if name == "!Ref":
            return self.values.get(argument, argument)
        if name == "!GetAtt":
            return argument
        assert name == "!Sub", name
        text, names = argument if isinstance(argument, list) else (argument, {})
        values = self.values | self(names)
        return re.sub(r"\$\{([\w:]+)\}", lambda match: str(values[match[1]]), text)


def alarm_metrics(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns namespace, name, dimensions and statistic of each metric that an alarm looks at."""
    properties = alarm["Properties"]
    if "Metrics" not in properties:
        statistic = properties.get("ExtendedStatistic") or properties["Statistic"]
        return [{**{key: properties[key] for key in ("Namespace", "MetricName", "Dimensions")}, "Stat": statistic}]
    stats = [item["MetricStat"] for item in properties["Metrics"] if "MetricStat" in item]
    return [{**stat["Metric"], "Stat": stat["Stat"]} for stat in stats]


def dashboard_metrics(dashboard: dict[str, Any]) -> list[list[str]]:
    """Returns namespace, name and dimensions of each line of the dashboard, its abbreviations written out."""
    rows = []
    for widget in json.loads(dashboard["Properties"]["DashboardBody"])["widgets"]:
        before: list[str] = []
        for metric in widget["properties"].get("metrics", ()):
            if "expression" in metric[0]:
                search = dict(_SEARCH.findall(metric[0]["expression"]))
                rows.append([search["Namespace"], search["MetricName"], "EndpointName", search["EndpointName"]])
                continue
            row = [item for item in metric if isinstance(item, str)]
            row = before if row == ["..."] else [old if new == "." else new for new, old in _pairs(row, before)]
            rows.append(row)
            before = row
    return rows


def _pairs(row: list[str], before: list[str]) -> list[tuple[str, str]]:
    return list(zip(row, before or row, strict=True))


def metric_names(namespace: str = "TrimodalInference", **parameters: str) -> set[str]:
    """Returns the names of the container's own metrics that alarms and dashboard use; `AbortDeployment` is nobody's."""
    found = resources(**parameters)
    alarms = [item for item in found.values() if item["Type"] == "AWS::CloudWatch::Alarm"]
    pairs = [(item["Namespace"], item["MetricName"]) for alarm in alarms for item in alarm_metrics(alarm)]
    pairs += [(row[0], row[1]) for row in dashboard_metrics(found["Dashboard"])]
    return {name for space, name in pairs if space == namespace} - {"AbortDeployment"}
