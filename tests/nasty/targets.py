"""What `scripts/fuzz` fuzzes: each target reads a stranger's bytes, and returns or raises an error meant for them.

Whatever else it does is a finding: another exception, a message of several lines, much time or memory, a crash.
"""

from __future__ import annotations

import asyncio
import collections
import gzip
import io
import json
import pickle
import re
import tempfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import nasty
from trimodal.errors import ArtifactError, OptimizationError, RequestError
from trimodal.limits import Limits
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.built import Built, TextPart
from trimodal.loading.calibration import read_calibrator
from trimodal.loading.config import read_config
from trimodal.loading.pickles import load_pickle, load_torch_config
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.loading.verify import read_golden
from trimodal.records import Record, Schema
from trimodal.servers.body import unpacked
from trimodal.serving.decode import decode, find_decoder
from trimodal.serving.encode import negotiate
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.markup import TextError, normalize_html
from trimodal.serving.naming import name_fields
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput
from trimodal.serving.tabular import RiskTable, TabularEncoder
from trimodal.serving.text import STEPS, TextEncoder, marked_messages

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"
LIMITS = Limits(records=50, depth=8, text=2000)
LONGEST_MESSAGE, LONGEST_INPUT = 2000, 8192
LARGE = (" MB", "000", "million", "again", "commas", "lines", "quotes", "spaces", "a long")
"""Parts of the names of those hostile bodies that are too large to begin with."""

Target = Callable[[bytes], object]


@dataclass(frozen=True)
class Fuzzed:
    """A target.

    Attributes:
        target: what reads the bytes.
        seeds: bytes to begin with.
    """

    target: Target
    seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> None:
        """Fails for anything but a result or an error that is meant for whoever sent the bytes."""
        try:
            self.target(data)
        except (RequestError, ArtifactError, OptimizationError, TextError) as err:
            status = err.status if isinstance(err, RequestError) else 400
            message = str(err)
        else:
            return
        assert 400 <= status < 500
        assert len(message) <= LONGEST_MESSAGE
        assert len(message.splitlines()) == 1
        assert tempfile.gettempdir() not in message


class Requests:
    """The request path of the demo model, up to the features."""

    def __init__(self) -> None:
        config = read_config(DEMO)
        tokenizer = load_tokenizer(DEMO, None)
        text = TextEncoder(tokenizer, config.primary_steps, 16, 3)
        other = TextEncoder(tokenizer, config.secondary_steps, 16, None, read_unmarked=True)
        tables = {config.tabular[0]: RiskTable({"1": 0.5}, 0.1)}
        assert STEPS.issuperset(config.primary_steps)
        assert len(config.primary_steps) == len(STEPS)
        self.texts = (config.primary, config.secondary)
        self.schema = Schema(*self.texts, config.tabular, id_name=config.id_name, envelope="instances")
        self.features = FeatureEncoder(self.schema, text, other, TabularEncoder(config.tabular, {}, tables), LIMITS)

    def body(self, data: bytes, content_type: str, *, report: bool = False) -> None:
        payload = decode(data, content_type, LIMITS, report=report)
        errors: dict[int, RequestError] | None = {} if report else None
        for record in name_fields(payload, self.schema, errors, LIMITS):
            self.features.encode(record)

    def text(self, data: bytes) -> None:
        message = data.decode(errors="surrogateescape")
        assert list(marked_messages(message)) == re.findall(r"\[bom\](.*?)\[eom\]", message, re.DOTALL)
        for field in (message, f"[bom]{message}[eom]"):
            self.features.encode(Record(0, dict.fromkeys(self.texts, field)))


def media_types(data: bytes) -> None:
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


def tokenizer(directory: Path) -> None:
    found: Tokenizer = load_tokenizer(directory, None)
    text = TextEncoder(found, ("dialogue_splitter", "dialogue_chunker", "tokenizer"), 16, 3, read_unmarked=True)
    text.encode("[bom]hello, what is it? zzqx[eom]")


def manifest(data: bytes) -> None:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(plain, dict):
        Built.from_json(plain)


class Folder:
    """A model directory, one file of which is written anew for each input."""

    def __init__(self, name: str, read: Callable[[Path], object]) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for other in {"hyperparameters.json", "tokenizer.json", "model.pth"} - {name}:
            (self.path / other).write_bytes(_demo(other))
        (self.path / name).parent.mkdir(exist_ok=True)
        self.file = self.path / name
        self.read = read

    def __call__(self, data: bytes) -> None:
        self.file.write_bytes(data)
        self.read(self.path)


def request_targets() -> dict[str, Fuzzed]:
    """Returns the targets of the request path."""
    requests = Requests()
    seeds = _bodies()
    good = seeds["application/json"][0]
    texts = [b"[bom]hello[eom]", b"<p>a &amp; b</p>", b"[bom]<a href='x'>y</a>[eom][bom]", "\U0001f600 é".encode()]
    found: dict[str, tuple[Target, list[bytes]]] = {
        "json": (partial(requests.body, content_type="application/json"), seeds["application/json"]),
        "json-lines": (
            partial(requests.body, content_type="application/jsonlines", report=True),
            seeds["application/jsonlines"],
        ),
        "csv": (partial(requests.body, content_type="text/csv"), seeds["text/csv"]),
        "parquet": (partial(requests.body, content_type="application/x-parquet"), seeds["application/x-parquet"]),
        "packed": (packed, [b"\xff" + gzip.compress(good), b"\x00" + zlib.compress(good)]),
        "media-types": (media_types, [b"application/json; charset=utf-8\ntext/csv;q=0.5, */*", b"text/csv\n*/*"]),
        "texts": (requests.text, texts),
        "markup": (lambda data: normalize_html(data.decode(errors="replace")), texts),
    }
    return {name: Fuzzed(target, tuple(own)) for name, (target, own) in found.items()}


def artifact_targets() -> dict[str, Fuzzed]:
    """Returns the targets of the model directory."""

    def folder(name: str, read: Callable[[Path], object] = read_artifacts) -> Folder:
        return Folder(name, read)

    config = read_config(DEMO)
    table = {"a": np.float64(0.5), "b": [(0.0, 1)], "c": {1, b"x"}, "d": frozenset({2})}
    found: dict[str, tuple[Target, list[bytes]]] = {
        "hyperparameters": (folder("hyperparameters.json", read_config), [_demo("hyperparameters.json")]),
        "columns": (folder("feature_columns.txt"), [_demo("feature_columns.txt")]),
        "imputation": (folder("impute_dict.json"), [b'{"net_conc_amt": 1.5}']),
        "risk-tables": (
            folder("risk_table_map.json"),
            [b'{"net_conc_amt": {"bins": {"b": 1}, "default_bin": 0}}'],
        ),
        "calibration": (
            folder("calibration/percentile_score.json", lambda path: read_calibrator(path, config)),
            [b"[[0, 0.1], [1, 0.9]]"],
        ),
        "golden": (
            folder("golden.jsonl", lambda path: read_golden(path / "golden.jsonl")),
            [b'{"record": {"a": 1}, "probs": [0.5, 0.5], "label": 1}'],
        ),
        "pickles": (
            folder("x.pkl", lambda path: load_pickle(path / "x.pkl")),
            [pickle.dumps(table, protocol) for protocol in range(6)],
        ),
        "torch-files": (
            folder("model_artifacts.pth", lambda path: load_torch_config(path / "model_artifacts.pth")),
            [_torch_file()],
        ),
        "tokenizer": (folder("tokenizer.json", tokenizer), [_small_tokenizer()]),
        "manifest": (manifest, [json.dumps(_built().to_json()).encode()]),
    }
    return {name: Fuzzed(target, tuple(own)) for name, (target, own) in found.items()}


def all_targets() -> dict[str, Fuzzed]:
    """Returns every target by name."""
    return request_targets() | artifact_targets()


def _demo(name: str) -> bytes:
    return (DEMO / name).read_bytes()


def _bodies() -> dict[str, list[bytes]]:
    """Returns the small ones of the hostile bodies by media type, and good ones."""
    line = (DEMO / "golden.jsonl").read_text(encoding="utf-8").splitlines()[0]
    full = json.loads(line)["record"]
    record = {name: value[:80] if isinstance(value, str) else value for name, value in full.items()}
    good = json.dumps(record).encode()
    found: dict[str, list[bytes]] = {
        "application/json": [good, json.dumps([record, {"instances": [record]}]).encode()],
        "application/jsonlines": [good + b"\n" + good],
        "text/csv": [",".join(record).encode() + b"\n" + b",".join(b'"1"' for _ in record)],
        "application/x-parquet": [nasty.write_parquet({name: [value] for name, value in record.items()})],
    }
    for name, make in nasty.corpus("dialogue", "shiptrack_event_history_by_order", "concsi").items():
        if not any(word in name for word in LARGE):
            case = make(record)
            if len(case.body) <= LONGEST_INPUT and case.content_type in found and not case.headers:
                found[case.content_type].append(case.body)
    return found


def _torch_file() -> bytes:
    """Returns what `torch.save` writes, as far as it is read."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        config = collections.OrderedDict(max_sen_len=np.int64(32), names=["a"], rate=0.5)
        archive.writestr("archive/data.pkl", pickle.dumps({"config": config}, 2))
    return file.getvalue()


def _small_tokenizer() -> bytes:
    """Returns the demo's tokenizer with few words, so that every byte of it matters."""
    document = json.loads(_demo("tokenizer.json"))
    vocabulary = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    document["model"]["vocab"] = dict(vocabulary[:60])
    return json.dumps(document).encode()


def _built() -> Built:
    layout = GraphLayout(
        TextInput("a", "m", np.dtype(np.int64)),
        TextInput("b", "n", np.dtype(np.int32), chunked=False, tokens=16),
        (TabularInput("x", np.dtype(np.float32), (0,)),),
        "probs",
    )
    texts = (TextPart("p.onnx", "i", "", ("t",), True), TextPart("s.onnx", "i", "m", ("u",), False, 16))
    providers = ("CPUExecutionProvider",)
    return Built("rebuild-fp32", "fp32", "onnxruntime", providers, layout, 4, 4, "", texts, "h.onnx", ((0, "a"),))
