"""The `trimodal` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from trimodal import __version__, log
from trimodal.errors import TrimodalError
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
        log.configure(settings.log_level)
        status: int = options.run(settings)
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
    return parser


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: object, text: str) -> None:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "model_dir",
        nargs="?",
        type=Path,
        metavar="MODEL_DIR",
        help="model directory (default: SM_MODEL_DIR, else /opt/ml/model)",
    )
    parser.set_defaults(run=run)


def _serve(settings: Settings) -> int:
    from trimodal.servers.serve import serve

    serve(settings)
    return 0


def _verify(settings: Settings) -> int:
    from trimodal.loading.load import load_pipeline
    from trimodal.loading.verify import TOLERANCE, replay_golden

    count, difference = replay_golden(load_pipeline(settings), settings.model_dir / "golden.jsonl")
    good = difference <= TOLERANCE
    print(f"{count} records, largest difference of a probability {difference:.2g}: {'ok' if good else 'NOT ok'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
