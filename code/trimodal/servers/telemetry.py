"""What one container measures of itself: one aggregation for all its processes, and the sinks that are asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimodal.loading.hardware import detect, memory_use, no_gpu
from trimodal.loading.plan import phases_of
from trimodal.loading.selection import Selection
from trimodal.log import write_line
from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.channel import CHANNEL, Receiver
from trimodal.metrics.publisher import Publisher, Sink
from trimodal.settings import Settings

if TYPE_CHECKING:
    from trimodal.metrics.prometheus import PrometheusPage

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""Time for what is left at the end: SageMaker kills the container 30 seconds after SIGTERM, and draining takes 25."""


class Telemetry:
    """The measurements of a container; usable when made, ended by `close`.

    Attributes:
        recorder: takes measurements of this process.
        page: what Prometheus reads, or None where that sink is not asked for.
        metrics: writes `/metrics` (body and media type), or None likewise.
    """

    def __init__(self, settings: Settings, run_dir: Path, model: str = "", *, container: bool = True) -> None:
        """Starts to receive from the workers and to publish.

        Args:
            settings: the container's settings.
            run_dir: directory that the workers know.
            model: the model's name; empty for that of its directory.
            container: measure the container's memory too; False for one of several models in it.
        """
        self._whole = container
        self._served: Mapping[str, Any] = {}
        self._pids: set[int] = set()
        self._memory = detect(gpu=no_gpu).memory
        self._kills = memory_use()[1]
        model = model or settings.model_dir.resolve().name or "model"
        self._container = {"Model": model, "Precision": settings.precision}
        if settings.endpoint_name:
            self._container |= {"EndpointName": settings.endpoint_name, "VariantName": settings.variant_name}
        self.page = page = self._page(settings)
        self.metrics = page.render if page is not None else None
        self.recorder = Aggregate(page)
        self._receiver = Receiver(run_dir / CHANNEL, self.recorder)
        self._publisher = Publisher(self.recorder, self._sinks(settings), settings.metrics_interval, self.watch)

    def _sinks(self, settings: Settings) -> list[Sink]:
        sinks: list[Sink] = []
        if "emf" in settings.metrics_sinks:
            from trimodal.metrics.emf import EmfSink

            sinks.append(EmfSink(write_line, settings.metrics_namespace, self._container))
        if "cloudwatch" in settings.metrics_sinks:
            from trimodal.metrics.cloudwatch import CloudWatchSink

            sinks.append(CloudWatchSink(settings.metrics_namespace, self._container, self.recorder))
        return sinks

    def _page(self, settings: Settings) -> PrometheusPage | None:
        if "prometheus" not in settings.metrics_sinks:
            return None
        from trimodal.metrics.prometheus import PrometheusPage

        return PrometheusPage(self._container)

    def cold_start(self, selection: Selection, seconds: float) -> None:
        """Records what the cold start came to.

        Args:
            selection: what it chose.
            seconds: from the container's start until its port is open.
        """
        record = self.recorder.record
        record("ColdStartSeconds", seconds)
        for phase in phases_of(selection.rung) if selection.level == 1 else ():
            record("OptimizationSuccess", Phase=phase)
        for phase, cause in selection.causes.items():
            record("OptimizationFailure", Phase=phase, Cause=cause_of(cause))

    def serving(self, served: Mapping[str, Any], pids: set[int]) -> None:
        """Notes what the workers serve, as they tell it, and which of them live; counts those that came anew."""
        for _ in pids - self._pids if self._pids else ():
            self.recorder.record("WorkerRestarts")
        self._pids |= pids
        self._served = served
        self._container["Precision"] = str(served.get("precision", self._container["Precision"]))

    def request(self, code: str | None, milliseconds: float) -> None:
        """Records one answered request; `code` is its error's, or None."""
        self.recorder.record("Requests")
        self.recorder.record("Latency", milliseconds)
        if code is not None:
            self.recorder.record("Errors", Code=code)
        if "providers" in self._served.get("causes", ()):
            self.recorder.record("ProviderFallback")

    def watch(self) -> None:
        """Records the state of the container, as it is now; called before each publication."""
        if self._served:
            self.recorder.record("FallbackLevel", float(self._served.get("level", 1)))
        if not self._whole:
            return
        used, kills = memory_use()
        if used is not None:
            self.recorder.record("MemoryUsed", used)
            self.recorder.record("MemoryUtilization", 100 * used / self._memory)
        if kills > self._kills:
            self.recorder.record("OutOfMemory", kills - self._kills)
        self._kills = kills

    def close(self) -> None:
        """Publishes what is left, within `FLUSH_SECONDS`."""
        self._receiver.close()
        self._publisher.close(FLUSH_SECONDS)


def cause_of(text: str) -> str:
    """Returns which kind of cause a text tells of; a metric's dimension must not take any text."""
    lowered = text.lower()
    return next((kind for kind, words in _CAUSES.items() if any(word in lowered for word in words)), "other")


_CAUSES = {
    "budget": ("optimization_budget_seconds",),
    "memory": ("memory", "signal 9"),
    "disk": ("no space", "disk", "read-only"),
    "scores": ("differ", "labels agree", "f1 falls", "not finite", "no finite", "change the scores"),
    "slower": ("slower",),
    "partial": ("partial", "layers were"),
    "unknown-graph": ("not known", "nothing was found", "no attention", "cannot be read", "reads every token"),
    "not-installed": ("not installed", "not available", "no gpu", "has no bf16"),
    "crash": ("killed by signal", "ended with status"),
    "stopped": ("told to stop",),
}
"""Kind of cause to words that its messages hold, the first that fits."""
