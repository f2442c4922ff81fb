from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.channel import SEND_SECONDS, Receiver, Sender, decode

WORKER = """
import sys, time
from pathlib import Path
from trimodal.metrics.channel import Sender
sender = Sender(Path(sys.argv[1]))
for request in range(50):
    sender.record("Records", 3)
    sender.record("StageLatency", request + 1, Stage="decode")
    time.sleep(0.002)
time.sleep(2)  # what the queue did not take is sent with what follows
sender.close()
"""


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_are_added_up(tmp_path):
    aggregate = Aggregate()
    receiver = Receiver(tmp_path / "metrics", aggregate)
    command = [sys.executable, "-c", WORKER, str(tmp_path / "metrics")]
    workers = [subprocess.Popen(command) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    receiver.close()

    series = {one.metric.name: one for one in aggregate.drain()}
    assert series["Records"].values == (450,)
    assert series["StageLatency"].values == tuple(range(1, 51))
    assert series["StageLatency"].counts == (3,) * 50
    assert "DroppedPoints" not in series


def test_what_nobody_takes_is_kept_until_somebody_does(tmp_path):
    path = tmp_path / "metrics"
    sender = Sender(path)
    for _ in range(3):
        sender.record("Records", 5)
    time.sleep(3 * SEND_SECONDS)
    aggregate = Aggregate()
    receiver = Receiver(path, aggregate)
    sender.close()
    receiver.close()

    assert {one.metric.name: one.values for one in aggregate.drain()} == {"Records": (15,)}


def test_a_main_process_that_does_not_read_costs_nothing(tmp_path):
    path = tmp_path / "metrics"
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deaf.bind(str(path))
    deaf.setblocking(False)
    sender = Sender(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        for _ in range(200):
            sender.record("Requests")
            sender.record("Latency", 5)
            sender._send(channel)
    points = Counter()

    def read():
        with suppress(BlockingIOError):
            while True:
                for name, value, count, _own in decode(deaf.recv(1 << 20)):
                    points[name] += count if name == "Latency" else value

    read()
    sender.close()
    read()
    deaf.close()

    assert points == {"Requests": 200, "Latency": 200}


def test_a_large_request_takes_several_datagrams(tmp_path):
    aggregate = Aggregate()
    receiver = Receiver(tmp_path / "metrics", aggregate)
    sender = Sender(tmp_path / "metrics")
    for place in range(100_000):
        sender.record("Score", place / 100_000)
    sender.close()
    receiver.close()

    series = {one.metric.name: one for one in aggregate.drain()}
    assert sum(series["Score"].counts) == 100_000


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_arrives_is_read_or_counted(datagram):
    aggregate = Aggregate()
    for point in decode(datagram):
        aggregate.add(*point)
    aggregate.drain()


GOOD = b'["Records",[],[1],[1]]'
DAMAGED = (
    b"[]", b'["Records",[],[1],[0]]', b'["Records",[],["x"],[1]]', b'[1,[],[1],[1]]', b'["Records",[[1]],[1],[1]]',
    b'["Records",[],[1,2],[1]]', b"[" * 100_000, b'["Records",[],[1],[1e400]]', b"\xff",
)  # fmt: skip


@given(st.lists(st.sampled_from((GOOD, *DAMAGED)), min_size=1))
def test_damaged_lines_cost_themselves_alone(lines):
    count = Counter(name for name, *_ in decode(b"\n".join(lines)))

    good = lines.count(GOOD)
    assert count["Records"] == good
    assert count["DroppedPoints"] == len(lines) - good


def test_the_receiver_ends(tmp_path):
    receiver = Receiver(tmp_path / "metrics", Aggregate())
    receiver.close()
    eventually(lambda: not receiver._thread.is_alive())
