"""The one table of metrics: what is measured, in which unit, under which dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["distribution", "counter", "gauge"]

ENDPOINT = ("EndpointName", "VariantName")
"""Dimensions that an alarm can name; a container that is not told them has none of the two."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: in CloudWatch.
        unit: one of CloudWatch's units.
        kind: `distribution` (values with their counts), `counter` (a sum), `gauge` (the last value).
        help: what it tells, in one line.
        dimensions: its own, beside the container's.
        joined: published under the endpoint's dimensions alone too, summed over its own.
        detailed: published by model and precision too.
    """

    name: str
    unit: str
    kind: Kind
    help: str
    dimensions: tuple[str, ...] = ()
    joined: bool = True
    detailed: bool = False


_TABLE = (
    Metric("Latency", "Milliseconds", "distribution", "one request, from its head to its answer", detailed=True),
    Metric("StageLatency", "Milliseconds", "distribution", "decode, tokenize, inference, encode", ("Stage",), False),
    Metric("QueueTime", "Milliseconds", "distribution", "from the front to a worker that is free"),
    Metric("Requests", "Count", "counter", "requests answered, with whatever status"),
    Metric("Errors", "Count", "counter", "requests answered with a status of 400 or more", ("Code",)),
    Metric("Records", "Count", "counter", "records scored", detailed=True),
    Metric("BatchSize", "Count", "distribution", "records of one run"),
    Metric("FallbackLevel", "None", "gauge", "level of the ladder that serves: 1 best, 4 PyTorch", detailed=True),
    Metric("ProviderFallback", "Count", "counter", "requests answered without the execution provider asked for"),
    Metric("OptimizationSuccess", "Count", "counter", "phases that the cold start applied", ("Phase",)),
    Metric("OptimizationFailure", "Count", "counter", "phases that it lost", ("Phase", "Cause")),
    Metric("ColdStartSeconds", "Seconds", "gauge", "from the container's start until its port was open", detailed=True),
    Metric("EncoderCacheHits", "Count", "counter", "texts whose encoder output was remembered"),
    Metric("EncoderCacheLookups", "Count", "counter", "texts that were looked up"),
    Metric("WorkerRestarts", "Count", "counter", "workers that came anew"),
    Metric("OutOfMemory", "Count", "counter", "processes that the kernel killed for memory"),
    Metric("MemoryUsed", "Bytes", "gauge", "memory of the container"),
    Metric("MemoryUtilization", "Percent", "gauge", "of the memory that it may use"),
    Metric("TextsTruncated", "Count", "counter", "messages that lost their end to the token limit", ("Text",)),
    Metric("ChunksDropped", "Count", "counter", "chunks beyond the limit, which were not scored", ("Text",)),
    Metric("UnmarkedTexts", "Count", "counter", "texts without [bom] and [eom]", ("Text",)),
    Metric("ImputedValues", "Count", "counter", "tabular values that were missing"),
    Metric("UnknownCategories", "Count", "counter", "categories that no risk table lists"),
    Metric("Score", "None", "distribution", "probability of class 1, or of the most probable of several classes"),
    Metric("ScoreDrift", "None", "distribution", "difference to the unoptimized model (shadow check)", detailed=True),
    Metric("LabelFlip", "Count", "counter", "records with another label than the unoptimized model", detailed=True),
    Metric("ShadowChecked", "Count", "counter", "records that were scored again"),
    Metric("ShadowSkipped", "Count", "counter", "records that were drawn and not scored again, for lack of idle time"),
    Metric("DroppedPoints", "Count", "counter", "measurements that were lost"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def dimension_sets(metric: Metric, container: Mapping[str, str], own: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the dimensions under which a measurement is published.

    Args:
        metric: what is measured.
        container: the container's dimensions: model and precision, endpoint and variant where they are named.
        own: the metric's own dimensions.
    """
    endpoint = {name: container[name] for name in ENDPOINT if name in container}
    if not endpoint:
        return [{**container, **own}]
    sets = [endpoint] if metric.joined else []
    if own:
        sets.append({**endpoint, **own})
    if metric.detailed:
        sets.append(dict(container))
    return sets


def markdown() -> str:
    """Returns the table for the README."""
    lines = ["| metric | unit | kind | also by | what it tells |", "|---|---|---|---|---|"]
    for metric in _TABLE:
        also = ", ".join(metric.dimensions) or ("Model, Precision" if metric.detailed else "")
        lines.append(f"| `{metric.name}` | {metric.unit} | {metric.kind} | {also} | {metric.help} |")
    return "\n".join(lines) + "\n"
