"""What is fuzzed: each target reads bytes of a stranger's and may fail only with an error that is meant for them.

A target gets any bytes. It returns, or raises one of `ALLOWED` with a short message; everything else is a finding.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from trimodal.errors import ArtifactError, OptimizationError, RequestError
from trimodal.limits import Limits
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.built import Built
from trimodal.loading.config import read_config
from trimodal.loading.pickles import load_pickle, load_torch_config
from trimodal.loading.verify import read_golden
from trimodal.records import Record, Schema
from trimodal.servers.body import unpacked
from trimodal.serving.decode import decode, find_decoder
from trimodal.serving.encode import negotiate
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.markup import TextError, normalize_html
from trimodal.serving.naming import name_fields
from trimodal.serving.tabular import RiskTable, TabularEncoder
from trimodal.serving.text import STEPS, TextEncoder, marked_messages

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "models" / "demo"
ALLOWED = (RequestError, ArtifactError, OptimizationError, TextError)

LIMITS = Limits(records=50, depth=8, text=2000)
LONGEST_MESSAGE = 2000

Target = Callable[[bytes], object]


@dataclass(frozen=True)
class Fuzzed:
    """A target with its seeds.

    Attributes:
        run: the target.
        seeds: bytes to begin with.
        max_length: bytes of the longest input.
    """

    run: Target
    seeds: tuple[bytes, ...]
    max_length: int = 4096


def checked(run: Target) -> Target:
    """Returns a target that fails for anything but what is allowed."""

    def target(data: bytes) -> None:
        try:
            run(data)
        except ALLOWED as err:
            if isinstance(err, RequestError) and not 400 <= err.status < 500:
                raise AssertionError(f"status {err.status}") from err
            if len(str(err)) > LONGEST_MESSAGE or "\n" in str(err):
                raise AssertionError(f"a message of {len(str(err))} characters") from err

    return target


class Folder:
    """A model directory in memory, one file of which is written anew for each input."""

    def __init__(self, name: str, read: Callable[[Path], object], *others: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))  # noqa: S108  a disk would be worn for nothing
        for other in others:
            (self.path / other).write_bytes((DEMO / other).read_bytes())
        (self.path / name).parent.mkdir(exist_ok=True)
        self.file = self.path / name
        self.read = read

    def __call__(self, data: bytes) -> object:
        self.file.write_bytes(data)
        return self.read(self.path)


def request_targets(seeds: dict[str, list[bytes]]) -> dict[str, Fuzzed]:
    """Returns the targets of the request path.

    Args:
        seeds: bodies by media type.
    """
    config = read_config(DEMO)
    schema = Schema(config.primary, config.secondary, config.tabular, id_name=config.id_name, envelope="instances")
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    text = TextEncoder(tokenizer, config.primary_steps, 16, 3)
    tables = {config.tabular[0]: RiskTable({"1": 0.5}, 0.1)}
    features = FeatureEncoder(schema, text, text, TabularEncoder(schema.tabular, {}, tables), LIMITS)

    def body(content_type: str, *, report: bool = False) -> Target:
        def run(data: bytes) -> None:
            payload = decode(data, content_type, LIMITS, report=report)
            errors: dict[int, RequestError] | None = {} if report else None
            for record in name_fields(payload, schema, errors, LIMITS):
                features.encode(record)

        return run

    def texts(data: bytes) -> None:
        message = data.decode(errors="surrogateescape")
        if list(marked_messages(message)) != re.findall(r"\[bom\](.*?)\[eom\]", message, re.DOTALL):
            raise AssertionError("other messages than the training found")
        for field in (message, f"[bom]{message}[eom]"):
            features.encode(Record(0, {config.primary: field}))

    def media(data: bytes) -> None:
        content_type, _, accept = data.decode("latin-1").partition("\n")
        negotiate(accept)
        find_decoder(content_type)

    def packed(data: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(1, len(data), 64):
                yield data[start : start + 64]

        async def read() -> None:
            size = 0
            async for piece in unpacked(chunks(), "gzip" if data[:1] > b"\x80" else "deflate", 100_000):
                size += len(piece)
                if size > 100_000:
                    return

        asyncio.run(read())

    words = [b"[bom]hello[eom]", b"<p>a &amp; b</p>", b"[bom]<a href='x'>y</a>[eom][bom]", "\U0001f600 é".encode()]
    types = [b"application/json; charset=utf-8\ntext/csv;q=0.5, */*", b"text/csv\napplication/json"]
    found = {
        "json": (body("application/json"), seeds["application/json"]),
        "json lines": (body("application/jsonlines", report=True), seeds["application/jsonlines"]),
        "csv": (body("text/csv"), seeds["text/csv"]),
        "parquet": (body("application/x-parquet"), seeds["application/x-parquet"]),
        "texts": (texts, words),
        "markup": (lambda data: normalize_html(data.decode(errors="replace")), words),
        "media types": (media, types),
        "packed bodies": (packed, seeds["packed"]),
    }
    return {name: Fuzzed(checked(run), tuple(own)) for name, (run, own) in found.items()}


def artifact_targets() -> dict[str, Fuzzed]:
    """Returns the targets of the model directory."""
    needed = ("hyperparameters.json", "tokenizer.json", "model.pth")

    def folder(name: str, read: Callable[[Path], object] = read_artifacts) -> Folder:
        return Folder(name, read, *(other for other in needed if other != name))

    def golden(path: Path) -> object:
        return read_golden(path / "golden.jsonl")

    def pickled(path: Path) -> object:
        return load_pickle(path / "risk_table_map.pkl")

    def built(data: bytes) -> None:
        try:
            plain = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(plain, dict):
            Built.from_json(plain)

    manifest = json.dumps(_built().to_json()).encode()
    files: dict[str, tuple[Target, Iterable[bytes]]] = {
        "hyperparameters.json": (folder("hyperparameters.json", read_config), [_demo("hyperparameters.json")]),
        "feature_columns.txt": (folder("feature_columns.txt"), [_demo("feature_columns.txt")]),
        "impute_dict.json": (folder("impute_dict.json"), [b'{"net_conc_amt": 1.5}']),
        "risk_table_map.json": (folder("risk_table_map.json"), [b'{"a": {"bins": {"b": 1}, "default_bin": 0}}']),
        "percentile_score.json": (folder("calibration/percentile_score.json"), [b"[[0, 0.1], [1, 0.9]]"]),
        "golden.jsonl": (folder("golden.jsonl", golden), [b'{"record": {"a": 1}, "probs": [0.5, 0.5], "label": 1}']),
        "pickles": (folder("risk_table_map.pkl", pickled), _pickles()),
        "model_artifacts.pth": (
            folder("model_artifacts.pth", lambda path: load_torch_config(path / "model_artifacts.pth")),
            [_demo("model_artifacts.pth")],
        ),
        "manifest": (built, [manifest]),
    }
    return {name: Fuzzed(checked(run), tuple(seeds), 8192) for name, (run, seeds) in files.items()}


def _demo(name: str) -> bytes:
    return (DEMO / name).read_bytes()


def all_targets() -> dict[str, Fuzzed]:
    """Returns every target by name."""
    from nasty.seeds import seeds

    return request_targets(seeds(DEMO))
