"""Serves a model directory the way others do, for `serving.py` to compare with.

    python scripts/bench/peers.py fastapi-padded|fastapi|litserve MODEL_DIR PORT

All of them read records, calibrate and answer with this project's own pipeline, and run `model.onnx` as it is. So what
differs is the server and how the graph is run: `fastapi-padded` has ONNX Runtime's default options and pads every text
to the model's longest, as the services do that this container replaces; `fastapi` pads nothing; `litserve` has one
process a core with one thread and tuned options.

Needs `requirements/peers.txt` beside what the server needs.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import litserve
import uvicorn
from fastapi import FastAPI

from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.load import feature_encoder, open_model, response_format
from trimodal.loading.sessions import Tuning
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.records import Payload
from trimodal.serving.encode import encode
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import Settings


def open_pipeline(model_dir: Path, *, padded: bool = False, threads: int | None = None) -> Pipeline:
    """Opens `model.onnx`.

    Args:
        model_dir: the model directory.
        padded: pad texts to `max_sen_len`.
        threads: of an operator, with the options that our own servers take; None for ONNX Runtime's defaults.
    """
    artifacts = read_artifacts(model_dir)
    tokenizer = load_tokenizer(model_dir, artifacts.config.tokenizer)
    runner = open_model(artifacts, tokenizer.token_to_id("[PAD]") or 0, Tuning(threads) if threads else None)
    if padded:
        layout, longest = runner.layout, artifacts.config.max_tokens
        layout = replace(layout, primary=replace(layout.primary, tokens=longest))
        runner = replace(runner, layout=replace(layout, secondary=replace(layout.secondary, tokens=longest)))
    return Pipeline(
        schema=artifacts.schema,
        features=feature_encoder(artifacts, tokenizer, runner.layout),
        runner=runner,
        calibrator=artifacts.calibrator,
        form=response_format(Settings(model_dir=model_dir)),
        binary=artifacts.config.binary,
    )


def answer(pipeline: Pipeline, record: dict[str, Any]) -> dict[str, Any]:
    """Scores one decoded record."""
    body, _ = encode(pipeline.predict(Payload([record])), "application/json", pipeline.form)
    return dict(json.loads(body))


def serve_fastapi(pipeline: Pipeline, port: int) -> None:
    """One process, one session, requests on a pool of threads."""
    app = FastAPI()

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/invocations")
    def invocations(record: dict[str, Any]) -> dict[str, Any]:
        return answer(pipeline, record)

    uvicorn.run(app, port=port, log_level="warning")


class Api(litserve.LitAPI):
    """What each worker process of LitServe runs."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__(api_path="/invocations")
        self.model_dir = model_dir

    def setup(self, _device: str) -> None:
        """Loads the model."""
        self.pipeline = open_pipeline(self.model_dir, threads=1)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes the record as it is."""
        return request

    def predict(self, record: dict[str, Any]) -> dict[str, Any]:
        """Scores one record."""
        return answer(self.pipeline, record)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Gives the answer as it is."""
        return output


def serve_litserve(model_dir: Path, port: int) -> None:
    """One worker process a core, each with the model and one thread."""
    workers = os.cpu_count() or 1
    server = litserve.LitServer(Api(model_dir), accelerator="cpu", workers_per_device=workers, healthcheck_path="/ping")
    server.run(port=port, generate_client_file=False, log_level="warning")


def main() -> None:
    """Serves."""
    kind, model_dir, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == "litserve":
        serve_litserve(model_dir, port)
    else:
        serve_fastapi(open_pipeline(model_dir, padded=kind == "fastapi-padded"), port)


if __name__ == "__main__":
    main()
