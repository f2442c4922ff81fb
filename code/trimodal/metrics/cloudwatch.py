"""CloudWatch's PutMetricData, on a thread of its own: slow, refusing or unreachable, it costs the service nothing.

Source of the limits: "PutMetricData" in the CloudWatch API reference. Values go with their counts, so that CloudWatch
can compute percentiles; botocore compresses what is large.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from boto3.session import Session  # boto3's own default one is not for threads
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError, PartialCredentialsError

from trimodal.metrics.aggregate import Aggregate, Series, Snapshot
from trimodal.metrics.emf import by_dimensions, cut

logger = logging.getLogger(__name__)

MAX_VALUES = 150
"""Values of a metric in a call."""

MAX_METRICS, MAX_TOTAL_VALUES = 500, 10_000
"""Metrics and values of a call: half of what is allowed, and far below 1 MB."""

MAX_WAITING = 10
"""Publications that wait for a CloudWatch that does not answer; the oldest is dropped."""

PATIENCE_SECONDS = 60.0
"""Longest pause after a failure."""

_HOPELESS = frozenset(
    {
        "AccessDenied", "AccessDeniedException", "AuthFailure", "InvalidClientTokenId", "InvalidSignatureException",
        "NotAuthorized", "OptInRequired", "SignatureDoesNotMatch", "UnrecognizedClientException",
    }
)  # fmt: skip
_NO_ONE = (NoCredentialsError, PartialCredentialsError, NoRegionError)

_CONFIG = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})


class CloudWatchSink:
    """Sends publications; gives up for good, with one warning, where it is not allowed to."""

    def __init__(self, namespace: str, container: Mapping[str, str], aggregate: Aggregate) -> None:
        """Starts the thread; no call is made yet.

        Args:
            namespace: of the metrics.
            container: the container's dimensions, read anew for each publication.
            aggregate: where lost measurements are counted.
        """
        self._namespace = namespace
        self._container = container
        self._aggregate = aggregate
        self._waiting: deque[list[dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="cloudwatch", daemon=True)
        self._thread.start()

    def publish(self, snapshot: Snapshot, at: float) -> None:
        """Takes what was measured; returns at once."""
        data = [
            datum
            for dimensions, group in by_dimensions(snapshot, self._container)
            for series in group
            for datum in _data(series, dimensions, at)
        ]
        with self._changed:
            if self._given_up:
                return
            if len(self._waiting) == MAX_WAITING:
                self._drop(self._waiting.popleft())
            self._waiting.append(data)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Sends what waits, for at most so long."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        failures = 0
        client: Any = None
        while (data := self._next()) is not None:
            try:
                client = client or Session().client("cloudwatch", config=_CONFIG)
                while data:
                    call = data[: _fitting(data)]
                    client.put_metric_data(Namespace=self._namespace, MetricData=call)
                    del data[: len(call)]
                failures = 0
            except Exception as err:  # noqa: BLE001  what is not botocore's own comes from the configuration
                passing = isinstance(err, BotoCoreError | ClientError) and not isinstance(err, _NO_ONE)
                if not passing or _code(err) in _HOPELESS:
                    self._give_up(err, data)
                    return
                failures += 1
                self._drop(data)
                logger.warning("CloudWatch takes no metrics", extra={"cause": _code(err) or type(err).__name__})
                pause = min(PATIENCE_SECONDS, 2.0**failures) * random.uniform(0.5, 1.0)  # noqa: S311  no secret
                self._closed.wait(pause)

    def _next(self) -> list[dict[str, Any]] | None:
        with self._changed:
            while not self._waiting:
                if self._closed.is_set():
                    return None
                self._changed.wait()
            return self._waiting.popleft()

    def _give_up(self, err: Exception, data: list[dict[str, Any]]) -> None:
        with self._changed:
            self._given_up = True
            for lost in (data, *self._waiting):
                self._drop(lost)
            self._waiting.clear()
        logger.warning(
            "no metrics go to CloudWatch: allow cloudwatch:PutMetricData for the namespace, set the region, or choose "
            "METRICS_SINKS=emf",
            extra={"cause": _code(err) or type(err).__name__},
        )

    def _drop(self, data: Sequence[Mapping[str, Any]]) -> None:
        self._aggregate.drop(sum(int(sum(datum["Counts"])) for datum in data))


def _data(series: Series, dimensions: Mapping[str, str], at: float) -> list[dict[str, Any]]:
    return [
        {
            "MetricName": series.metric.name,
            "Dimensions": [{"Name": name, "Value": value} for name, value in sorted(dimensions.items())],
            "Timestamp": datetime.fromtimestamp(at, UTC),
            "Unit": series.metric.unit,
            "Values": list(part.values),
            "Counts": [float(count) for count in part.counts],
        }
        for part in cut(series, MAX_VALUES)
    ]


def _fitting(data: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many of the first metrics go into one call."""
    values = 0
    for place, datum in enumerate(data[:MAX_METRICS]):
        values += len(datum["Values"])
        if values > MAX_TOTAL_VALUES:
            return place
    return min(len(data), MAX_METRICS)


def _code(err: Exception) -> str:
    return str(err.response["Error"].get("Code", "")) if isinstance(err, ClientError) else ""
