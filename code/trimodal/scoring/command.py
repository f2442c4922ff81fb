"""The command `trimodal score`: checks what it is given, chooses what to serve, and sees every partition through."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import inference
from trimodal.errors import ArtifactError, DatasetError, SettingsError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.hardware import choose_threads, choose_workers, detect, graph_size, no_gpu
from trimodal.loading.locks import locked
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.scoring.dataset import Partition, cut, find_files
from trimodal.scoring.manifest import LOCK, begin, describe, remaining
from trimodal.scoring.pool import Plan, check_installed, run
from trimodal.scoring.progress import Progress, standard_error
from trimodal.scoring.scorer import ERROR, FILE, RECORD
from trimodal.servers.handlers import NAMES, Handlers, find_handlers
from trimodal.settings import Settings

_STOPPED = 130
"""Exit status after Ctrl+C or SIGTERM."""


def score(settings: Settings, source: Path, out: Path, workers: int | None, rows: int) -> int:
    """Scores a data set.

    Args:
        settings: the container's settings.
        source: a parquet or JSON-lines file, or a folder of them.
        out: folder that takes the output; new, empty, or that of a run which is taken up again.
        workers: processes, or None to choose by cores and memory.
        rows: most records of a partition.

    Returns:
        Exit status: 0 when every partition is done, 1 when some failed, 130 when it was stopped.

    Raises:
        TrimodalError: it cannot be begun; the text says what to fix.
    """
    if rows < 1:
        raise SettingsError(f"--partition-rows {rows} must be at least 1.")
    settings, count = share_cores(settings, workers)
    folder, names = find_files(source)
    if out.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"The output folder {out} lies inside the input; name one elsewhere.")
    _check_model(settings)
    check_installed()
    partitions = cut(folder, names, rows)
    with _owned(out), tempfile.TemporaryDirectory(prefix="trimodal-") as run_dir:
        settings = replace(settings, run_dir=Path(run_dir))
        selection = prepare(settings, settings.intra_op_threads or 1)
        selection.write(Path(run_dir))
        begin(out, describe(settings.model_dir, selection.precision, folder, names, rows))
        left = remaining(out, partitions)
        return _see_through(_plan(settings, folder, out, selection, count), partitions, left)


def share_cores(settings: Settings, workers: int | None) -> tuple[Settings, int]:
    """Divides the cores among processes: one core each, where nothing else is asked for and memory allows.

    Returns:
        The settings with the threads of each process, and the processes.

    Raises:
        SettingsError: there are not enough cores for what was asked.
    """
    if workers is not None and workers < 1:
        raise SettingsError(f"--workers {workers} must be at least 1.")
    hardware = detect(gpu=no_gpu)
    count = workers or settings.workers or choose_workers(hardware, graph_size(settings.model_dir), cores=1)
    threads = settings.intra_op_threads or choose_threads(hardware, count)
    if count * threads > hardware.cores:
        raise SettingsError(
            f"{count} workers of {threads} threads need more than the {hardware.cores} cores that there are; "
            "lower --workers or ONNX_INTRA_OP_THREADS."
        )
    return replace(settings, intra_op_threads=threads), count


def _check_model(settings: Settings) -> None:
    """Checks that the model's answers are those of the pipeline, and that their names can be columns.

    Raises:
        ArtifactError: they are not, or the model directory cannot be used.
    """
    if not settings.model_dir.is_dir():
        raise ArtifactError(f"The model directory {settings.model_dir} does not exist.")
    handlers = find_handlers(settings.model_dir, settings.program)
    if handlers != Handlers(*(getattr(inference, name) for name in NAMES)):
        raise ArtifactError(f"code/{settings.program} has handlers of its own, which only the servers run; remove it.")
    id_name = read_artifacts(settings.model_dir).schema.id_name
    if id_name in (FILE, RECORD, ERROR):
        raise ArtifactError(f"id_name {id_name!r} is the name of a column of the output; rename the field.")


@contextlib.contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Makes the output folder, and keeps other runs out of it.

    Raises:
        DatasetError: it cannot be made, or another run writes there.
    """
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / LOCK, 0))
        except TimeoutError as err:
            raise DatasetError(f"Another run writes to {out}; wait for it, or name another folder.") from err
        except OSError as err:
            raise DatasetError(f"The output folder {out} cannot be used: {err.strerror}.") from err
        yield


def _plan(settings: Settings, folder: Path, out: Path, selection: Selection, workers: int) -> Plan:
    hardware = detect(gpu=no_gpu)
    return Plan(
        settings=replace(settings, model_dir=settings.model_dir.resolve()),
        folder=folder.resolve(),
        out=out.resolve(),
        level=selection.level,
        workers=workers,
        cores=hardware.cores,
        memory=hardware.memory,
    )


def _see_through(plan: Plan, partitions: Sequence[Partition], left: Sequence[Partition]) -> int:
    """Scores what is left, tells how it goes and what it came to; returns the exit status."""
    progress = Progress((len(left), sum(partition.records for partition in left)), plan.workers, standard_error())
    before = len(partitions) - len(left)
    processes = f"{plan.workers} workers of {plan.settings.intra_op_threads} threads"
    progress.say(f"{len(partitions)} partitions, {before} of them done before; {processes}")
    try:
        if left:
            progress.follow(run(plan, left))
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the latter
        progress.say("stopped; the same command goes on with what is left")
        return _STOPPED
    if progress.failed:
        progress.say(f"{progress.failed} partitions failed; the same command tries them again")
    if progress.errors:
        progress.say(f"{progress.errors} records have an error instead of scores; the first: {progress.error}")
    print(f"{plan.out}: {len(partitions) - progress.failed} of {len(partitions)} partitions done")
    return 1 if progress.failed else 0
