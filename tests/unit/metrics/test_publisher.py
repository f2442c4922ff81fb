from __future__ import annotations

import threading
import time

from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.publisher import Publisher


class Sink:
    def __init__(self, error=None):
        self.error, self.published, self.closed = error, [], []

    def publish(self, snapshot, _at):
        if self.error is not None:
            raise self.error
        self.published += [(series.metric.name, sum(series.counts)) for series in snapshot]

    def close(self, seconds):
        self.closed.append(seconds)


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_measured_reaches_every_sink_whatever_the_others_do(caplog):
    aggregate, good = Aggregate(), Sink()
    publisher = Publisher(aggregate, [Sink(RuntimeError("secret text")), good], 0.02)
    for _ in range(5):
        aggregate.record("Latency", 1)
    eventually(lambda: sum(count for _, count in good.published) == 5)
    publisher.close(30)

    assert good.closed
    told = [record for record in caplog.records if record.name == "trimodal.metrics.publisher"]
    assert {record.cause for record in told} == {"RuntimeError"}
    assert "secret text" not in caplog.text


def test_the_last_interval_is_not_lost():
    aggregate, sink = Aggregate(), Sink()
    publisher = Publisher(aggregate, [sink], 3600)
    aggregate.record("Latency", 1)
    publisher.close(30)

    assert sink.published == [("Latency", 1)]


def test_states_are_measured_before_each_publication():
    aggregate, sink = Aggregate(), Sink()
    publisher = Publisher(aggregate, [sink], 3600, before=lambda: aggregate.record("FallbackLevel", 1))
    publisher.close(30)

    assert sink.published == [("FallbackLevel", 1)]


def test_a_sink_that_hangs_does_not_hold_up_the_end():
    gate, aggregate = threading.Event(), Aggregate()

    class Stalled(Sink):
        def publish(self, _snapshot, _at):
            gate.wait()

    publisher = Publisher(aggregate, [Stalled()], 3600)
    aggregate.record("Latency", 1)
    publisher.close(0.1)

    assert publisher._thread.is_alive()  # a daemon: the process may end
    gate.set()
    publisher._thread.join(60)
