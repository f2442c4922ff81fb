"""What measuring costs a request: the demo's pipeline with and without it, in turn, in one process.

Run it as `.venv/bin/python scripts/bench/metrics_cost.py [MODEL_DIR]`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from trimodal.loading.hardware import detect, libraries, no_gpu
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import read_golden
from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.channel import CHANNEL, Receiver, Sender
from trimodal.metrics.instrumented import measured
from trimodal.settings import Settings

DEMO = Path(__file__).parents[1] / "models" / "demo"
REQUESTS, ROUNDS = 200, 15


def main() -> int:
    """Measures, and prints one JSON object."""
    model_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(model_dir=model_dir, optimized_dir=Path(folder), workers=1, intra_op_threads=1)
        plain = load_pipeline(replace(settings, encoder_cache=0))
        receiver = Receiver(Path(folder) / CHANNEL, Aggregate())
        sender = Sender(Path(folder) / CHANNEL)
        wrapped = measured(plain, sender)
        bodies = [json.dumps(record).encode() for record, _ in read_golden(model_dir / "golden.jsonl")]

        def off(body: bytes) -> None:
            plain.answer(body, "application/json", None)

        def on(body: bytes) -> None:
            wrapped.answer(body, "application/json", None)

        rounds = [in_turn(off, on, bodies) for _ in range(ROUNDS)]
        sender.close()
        receiver.close()
    hardware = detect(gpu=no_gpu)
    print(json.dumps({
        "model": model_dir.resolve().name, "processor": hardware.processor, "cores": hardware.cores,
        "onnxruntime": libraries()["onnxruntime"], "requests": REQUESTS, "rounds": ROUNDS,
        "milliseconds_a_request_without": spread([without for without, _, _ in rounds]),
        "milliseconds_a_request_with": spread([with_it for _, with_it, _ in rounds]),
        "cost_milliseconds": spread([cost for *_, cost in rounds]),
    }, indent=1))  # fmt: skip
    return 0


def in_turn(off: Callable[[bytes], None], on: Callable[[bytes], None], bodies: list[bytes]) -> tuple[float, ...]:
    """Sends each request both ways, one after the other.

    Returns:
        Milliseconds: median without, median with, and median of their differences.
    """
    times = []
    for place in range(REQUESTS):
        body = bodies[place % len(bodies)]
        begun = time.perf_counter()
        off(body)
        between = time.perf_counter()
        on(body)
        times.append((between - begun, time.perf_counter() - between))
    without, with_it = zip(*times, strict=True)
    return tuple(1000 * median(one) for one in (without, with_it, [b - a for a, b in times]))


def spread(values: list[float]) -> dict[str, float]:
    """Returns median, least and largest."""
    return {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    sys.exit(main())
