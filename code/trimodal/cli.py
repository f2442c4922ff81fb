"""The `trimodal` command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from trimodal import __version__, log
from trimodal.errors import ArtifactError, TrimodalError
from trimodal.settings import Settings

logger = logging.getLogger("trimodal")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Exit status: 0 done, 1 it could not be done (one message says why), 2 wrong usage.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        if options.model_dir is not None:
            settings = replace(settings, model_dir=options.model_dir)
        if options.run is _serve:
            log.configure(settings.log_level)
        else:  # what a command answers goes to stdout, and only these take long
            quiet = settings.log_level == "INFO" and options.run not in (_prepare, _bench, _optimize)
            log.configure("WARNING" if quiet else settings.log_level, sys.stderr)
        status: int = options.run(settings, options)
    except TrimodalError as err:
        sys.stdout.flush()
        print(f"trimodal: {err}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trimodal", description="Serves a trimodal classifier the SageMaker way.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "serve", _serve, "serve a model directory on /ping and /invocations")
    _command(commands, "verify", _verify, "replay a model directory's golden.jsonl and compare the probabilities")
    doctor = _command(commands, "doctor", _doctor, "say what this host and this model allow, what is tried and why")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    prepare = _command(commands, "prepare", _prepare, "optimize a model directory ahead of its first start")
    prepare.add_argument("--out", type=Path, metavar="DIR", help="where to write a copy that holds the optimized model "
                         "(default: into MODEL_DIR/optimized)")  # fmt: skip
    export = _command(commands, "export", _export, "write model.onnx from model.pth, and prove equal scores")
    export.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: MODEL_DIR/model.onnx)")
    export.add_argument("--opset", type=int, default=17, choices=range(14, 21), metavar="N",
                        help="version of the ONNX operators, 14 to 20 (default: 17)")  # fmt: skip
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_optimize(commands)
    _add_score(commands)
    bench = commands.add_parser("bench", help="measure a model directory on this host").add_subparsers(
        title="benchmarks", required=True, metavar="BENCHMARK"
    )
    text = "time every rung of the ladder and its peers side by side, on realistic and on fixed text lengths"
    ladder = _command(bench, "ladder", _bench, text)
    ladder.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds over all requests (default: 3)")
    ladder.add_argument("--lengths", type=int, nargs="*", default=[32, 128, 512], metavar="S",
                        help="fixed text lengths in tokens (default: 32 128 512)")  # fmt: skip
    ladder.add_argument("--quick", action="store_true", help="few requests: a look, not a result")
    ladder.add_argument("--out", type=Path, metavar="DIR", help="also write JSON and Markdown there")
    return parser


def _add_optimize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure PyTorch, ONNX and OpenVINO variants of a model side by side, and write a report with pictures"
    parser = _command(commands, "optimize", _optimize, text)
    parser.epilog = ("MODEL_DIR: a trimodal model directory, or a Hugging Face directory of one encoder. Progress is "
                     "shown on stderr. Ctrl+C cancels and leaves nothing behind (exit status 130).")  # fmt: skip
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 32], metavar="B",
                        help="records of a call (default: 1 16 32)")  # fmt: skip
    parser.add_argument("--sequence-lengths", type=int, nargs="*", default=[32, 128, 512], metavar="S",
                        help="fixed text lengths in tokens, beside realistic ones (default: 32 128 512)")  # fmt: skip
    parser.add_argument("--texts", type=Path, metavar="FILE",
                        help="texts to judge an encoder on: one a line, or JSON lines with text and label "
                        "(default: texts that come with it)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="threads of one operator (default: cores, at most 4)")
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="time for timing (default: 70 for a model under 64 MiB, else 780)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few calls: a look, not a result")
    parser.add_argument("--beside", type=Path, metavar="FILE",
                        help="JSON with others' figures: source, note, rows of batch, pytorch_ms, onnx_ms")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write JSON, Markdown, HTML and PNGs there")


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "score a data set of parquet or JSON-lines files on every core; the same command goes on after a stop"
    parser = commands.add_parser("score", help=text, description=text.capitalize() + ".")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="model directory")
    parser.add_argument("input", type=Path, metavar="INPUT", help="a .parquet or .jsonl file, or a folder of them")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="folder that takes parquet files of scores")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes, each with a copy of the model (default: by cores and memory)")  # fmt: skip
    parser.add_argument("--partition-rows", type=int, default=1000, metavar="N",
                        help="records of an output file, lost to a worker that is stopped (default: 1000)")  # fmt: skip
    parser.set_defaults(run=_score)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: object, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "model_dir",
        nargs="?",
        type=Path,
        metavar="MODEL_DIR",
        help="model directory (default: SM_MODEL_DIR, else /opt/ml/model)",
    )
    parser.set_defaults(run=run)
    return parser


def _serve(settings: Settings, _options: argparse.Namespace) -> int:
    if settings.server == "asgi":
        from trimodal.servers.supervisor import supervise

        return supervise(settings)
    if settings.multi_model:
        from trimodal.servers.serve_many import serve_many

        serve_many(settings)
        return 0
    from trimodal.servers.serve import serve

    serve(settings)
    return 0


def _verify(settings: Settings, _options: argparse.Namespace) -> int:
    from trimodal.loading.load import load_pipeline
    from trimodal.loading.verify import replay_golden

    pipeline = load_pipeline(settings)
    comparison = replay_golden(pipeline, settings.model_dir / "golden.jsonl")
    if pipeline.status["report"]:
        print(pipeline.status["report"])
    print(
        f"level {pipeline.status['level']}, {pipeline.status['rung']}: {comparison.records} records, "
        f"largest difference of a probability {comparison.largest:.2g}: "
        f"{'ok' if comparison.refusal is None else 'NOT ok: ' + comparison.refusal}"
    )
    return 0 if comparison.refusal is None else 1


def _doctor(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.loading.doctor import examine, to_text

    findings = examine(settings)
    print(json.dumps(findings, indent=1) if options.json else to_text(findings))
    return 1 if findings["problems"] else 0


def _export(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.loading.pytorch import export_model

    out = options.out or settings.model_dir / "model.onnx"
    if out.exists() and not options.force:
        raise ArtifactError(f"{out.name} is there already; name another file with --out, or replace it with --force.")
    difference = export_model(settings.model_dir, out, opset=options.opset)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, largest difference of a probability {difference:.2g}")
    return 0


def _prepare(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.loading.bake import bake

    selection = bake(settings, options.out)
    print(selection.report)
    print(f"level {selection.level}, {selection.rung}: " + ("prepared" if selection.level == 1 else "NOT prepared"))
    return 0 if selection.level == 1 else 1


def _score(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.scoring.command import score

    return score(settings, options.input, options.output_dir, options.workers, options.partition_rows)


def _bench(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.bench.ladder import run_ladder

    return run_ladder(settings, rounds=options.rounds, out=options.out, lengths=options.lengths, quick=options.quick)


def _optimize(settings: Settings, options: argparse.Namespace) -> int:
    from trimodal.bench.asked import Request, command_line, read_beside, read_texts
    from trimodal.bench.toolkit import run_optimize

    texts, labels = read_texts(options.texts) if options.texts is not None else (None, None)
    request = Request(
        folder=settings.model_dir,
        batch_sizes=options.batch_sizes,
        lengths=options.sequence_lengths,
        texts=texts,
        labels=labels,
        threads=options.threads or settings.intra_op_threads,
        budget=options.budget,
        quick=options.quick,
        command=command_line(settings.model_dir, options.batch_sizes, options.sequence_lengths),
        beside=None if options.beside is None else read_beside(options.beside),
    )
    return run_optimize(request, options.out)


if __name__ == "__main__":
    sys.exit(main())
