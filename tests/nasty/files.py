"""Parquet files, packed bodies, and headers."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nasty.parts import CANARY, JSON, MB, PARQUET, Make, Nasty, Record


def write_parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    """Returns a parquet file."""
    out = io.BytesIO()
    parquet.write_table(pa.table(dict(columns)), out, **options)
    return out.getvalue()


def zeros(size: int) -> bytes:
    """Returns a gzip file of so many zeros; it is a thousandth of their size."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    block = bytes(MB)
    return b"".join([packer.compress(block) for _ in range(size // MB)]) + packer.flush()


def parquet_files(text: str, number: str) -> dict[str, Make]:
    """Returns parquet files that are none, or hold more than they weigh."""
    bodies: dict[str, Callable[[Record], bytes]] = {
        "a long text": lambda r: write_parquet(
            _columns(r, {text: ["x" * 150 * MB]}),
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
        ),
        "a long text often": lambda _: write_parquet(
            {text: pa.DictionaryArray.from_arrays(np.zeros(16, np.int32), ["x" * 50 * MB])}, compression="zstd"
        ),
        "a list of nulls": lambda _: write_parquet(
            {number: pa.ListArray.from_arrays(pa.array([0, 50 * MB], pa.int32()), pa.nulls(50 * MB))},
            compression="zstd",
        ),
        "columns of nulls": lambda _: write_parquet({f"c{i}": pa.nulls(90_000) for i in range(200)}),
        "100,001 rows": lambda _: write_parquet({number: np.zeros(100_001)}),
        "no rows": lambda r: write_parquet({name: pa.array([], pa.float32()) for name in r}),
        "no columns": lambda _: write_parquet({}),
        "a list as value": lambda r: write_parquet(_columns(r, {number: [[1.0, 2.0]]})),
        "bytes as text": lambda r: write_parquet(_columns(r, {text: [b"\xff" + CANARY.encode()]})),
        "a date as value": lambda r: write_parquet(_columns(r, {number: pa.array([2**62], pa.timestamp("us"))})),
        "magic alone": lambda _: b"PAR1" * 3,
        "half": lambda r: (body := write_parquet(_columns(r, {})))[: len(body) // 2],
        "end lost": lambda r: write_parquet(_columns(r, {}))[:-1],
        "zeros within": lambda r: (body := write_parquet(_columns(r, {})))[:50] + bytes(50) + body[100:],
        "a long footer": lambda _: b"PAR1" + bytes(10 * MB) + (10 * MB).to_bytes(4, "little") + b"PAR1",
        "a footer before the file": lambda _: b"PAR1" + bytes(100) + (2**31).to_bytes(4, "little") + b"PAR1",
        "JSON": lambda r: json.dumps(r).encode(),
    }
    return {f"parquet: {name}": lambda r, make=make: Nasty(make(r), PARQUET) for name, make in bodies.items()}


def _columns(record: Record, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: [value] for name, value in record.items()}, **changes}


def media_types() -> dict[str, Make]:
    """Returns requests with media types that nobody reads or writes."""
    contents = {
        "unknown": "text/plain",
        "nonsense": CANARY,
        "empty": "",
        "slashes": "/" * 5000,
        "parameters": JSON + "; a=b" * 400,
        "charset": f"{JSON}; charset={CANARY}",
        "encoded": f"{JSON}; charset*=utf-8''%ff",
        "parts": "multipart/form-data; boundary=x",
        "form": "application/x-www-form-urlencoded",
        "pickle": "application/x-npy",
        "star": "*/*",
    }
    accepts = {
        "unknown": "image/png",
        "nonsense": CANARY,
        "many": ",".join(f"a/{i}" for i in range(900)),
        "quality": f"{JSON};q=nan",
        "refused": f"{JSON};q=0",
        "endless": f"{JSON};q={'9' * 4000}",
    }

    def typed(media: str) -> Make:
        return lambda r: Nasty(json.dumps(r).encode(), media)

    def accepted(media: str) -> Make:
        return with_headers({"Accept": media})

    return {
        **{f"content type: {name}": typed(media) for name, media in contents.items()},
        **{f"accept: {name}": accepted(media) for name, media in accepts.items()},
    }


def with_headers(headers: Mapping[str, str]) -> Make:
    """Returns a good record with more headers."""
    return lambda r: Nasty(json.dumps(r).encode(), headers=headers)


def coded() -> dict[str, Make]:
    """Returns packed bodies that unpack to too much or not at all, and headers that are too large or forged."""
    codings: dict[str, Callable[[bytes], tuple[bytes, str]]] = {
        "bomb": lambda _: (zeros(60 * MB), "gzip"),
        "bomb in a bomb": lambda _: (gzip.compress(zeros(60 * MB)), "gzip, gzip"),
        "unknown": lambda body: (body, "br"),
        "nonsense": lambda body: (body, CANARY),
        "not packed": lambda body: (body, "gzip"),
        "cut": lambda body: (gzip.compress(body)[:-5], "gzip"),
        "more behind": lambda body: (gzip.compress(body) + bytes(MB), "gzip"),
        "twice": lambda body: (gzip.compress(body) * 2, "gzip"),
        "wrong sum": lambda body: (gzip.compress(body)[:-8] + bytes(8), "gzip"),
        "without a head": lambda body: (zlib.compress(body)[2:-4], "deflate"),
    }

    def packed(pack: Callable[[bytes], tuple[bytes, str]]) -> Make:
        def make(record: Record) -> Nasty:
            body, coding = pack(json.dumps(record).encode())
            return Nasty(body, headers={"Content-Encoding": coding})

        return make

    headers = {
        "7 kB": {"X-Long": "x" * 7000},
        "40 kB": {f"X-{i}": "x" * 8000 for i in range(5)},
        "forged": {"x-trimodal-answer": "1", "x-trimodal-sent": "nan", "x-trimodal-request-id": CANARY},
        "request id": {"X-Request-Id": '"}\\n{' * 500},
    }
    return {
        **{f"coding: {name}": packed(pack) for name, pack in codings.items()},
        **{f"header: {name}": with_headers(values) for name, values in headers.items()},
    }
