"""Ray, and nothing else: scores partitions on a pool of processes of this machine, each with one copy of the model.

What goes through Ray is which partition to score and what became of it; records and scores never do, so its object
store stays small. `Dataset.map_batches` keeps the pool, starts a process again when it dies, and gives the partition
that it died of to another; that one finds the partition begun, and reports it as failed (`trimodal.scoring.scorer`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimodal.errors import DatasetError, TrimodalError
from trimodal.loading.hardware import MIB
from trimodal.scoring.dataset import Partition
from trimodal.scoring.scorer import Outcome, Scorer
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

_STORE = (80 * MIB, 512 * MIB)
"""Least and most bytes of Ray's object store; it refuses less than 75 MiB."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # whoever starts the command decides
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: everything listens on 127.0.0.1 only
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the processes need to know.

    Attributes:
        settings: the container's settings; `run_dir` holds what the cold start chose, threads are set.
        folder: where the input files are.
        out: where the output files go.
        level: of the ladder at which the model is served.
        workers: processes.
        cores: that all of them may use together.
        memory: bytes of this machine.
    """

    settings: Settings
    folder: Path
    out: Path
    level: int
    workers: int
    cores: int
    memory: int


def check_installed() -> None:
    """Checks that Ray is there.

    Raises:
        DatasetError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise DatasetError(
            f"Ray is not installed; run: {sys.executable} -m pip install --no-deps --require-hashes "
            "-r requirements/score.txt"
        )


def run(plan: Plan, partitions: Sequence[Partition]) -> Iterator[Outcome]:
    """Scores partitions; yields what became of each, as they come.

    Raises:
        DatasetError: Ray cannot be started, or broke down.
    """
    with _ray(plan) as ray:
        outcomes = iter(_dataset(ray, plan, partitions).iter_rows())
        while True:
            try:
                row = next(outcomes)
            except StopIteration:
                return
            except ray.exceptions.RayError as err:
                raise DatasetError(f"Ray broke down: {type(err).__name__}.") from err
            yield Outcome(**json.loads(row["outcome"]))


def _dataset(ray: Any, plan: Plan, partitions: Sequence[Partition]) -> Any:
    """Returns the data set of outcomes, one block each, which is computed as it is read."""
    items = [{"partition": json.dumps(asdict(partition))} for partition in partitions]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=plan.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=plan.cores // plan.workers,
        fn_constructor_args=(plan, secrets.token_hex(4)),
    )


class _Worker:
    """One process of the pool."""

    def __init__(self, plan: Plan, run: str) -> None:
        self.scorer: Scorer | str
        try:
            self.scorer = Scorer.load(plan.settings, plan.folder, plan.out, run, plan.level)
        except TrimodalError as err:  # raised here it would be tried again without end
            self.scorer = str(err)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        partition = Partition(**json.loads(str(batch["partition"][0])))
        if isinstance(self.scorer, str):
            outcome = Outcome(partition.place, failure=self.scorer)
        else:
            outcome = self.scorer.score(partition)
        return {"outcome": [json.dumps(asdict(outcome))]}


@contextlib.contextmanager
def _aside(log: Path) -> Iterator[None]:
    """Sends what Ray says, from C++ and Python, on its own inner workings, to a file instead of stdout and stderr."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with log.open("ab") as file:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _ray(plan: Plan) -> Iterator[Any]:
    """Starts Ray on this machine alone: no network, no dashboard, no statistics sent, nothing left behind.

    Raises:
        DatasetError: it does not start.
    """
    os.environ.update(_ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, _aside(Path(folder) / "log"):
        import ray
        import ray.data

        try:
            ray.init(
                address="local",
                num_cpus=plan.cores,
                include_dashboard=False,
                object_store_memory=min(max(_STORE[0], plan.memory // 20), _STORE[1]),
                log_to_driver=False,
                _temp_dir=folder,
            )
        except Exception as err:
            raise DatasetError(f"Ray does not start: {type(err).__name__}: {str(err).splitlines()[0]}") from err
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = MIB  # what Ray reserves for a result that is not known yet
        try:
            yield ray
        finally:
            ray.shutdown()
