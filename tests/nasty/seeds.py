"""The small ones of the hostile bodies, by media type, for `scripts/fuzz` to begin with."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import nasty

_LONGEST = 4096


def seeds(model_dir: Path) -> dict[str, list[bytes]]:
    """Returns bodies by media type, good ones among them; packed bodies stand under `packed`.

    Args:
        model_dir: the demo model's directory.
    """
    line = (model_dir / "golden.jsonl").read_text(encoding="utf-8").splitlines()[0]
    record = {
        name: value[:80] if isinstance(value, str) else value for name, value in json.loads(line)["record"].items()
    }
    good = json.dumps(record).encode()
    found: dict[str, list[bytes]] = {
        "application/json": [good, json.dumps([record, {"instances": [record]}]).encode()],
        "application/jsonlines": [good + b"\n" + good],
        "text/csv": [",".join(record).encode() + b"\n" + b",".join(b'"x"' for _ in record)],
        "application/x-parquet": [],
        "packed": [b"\xff" + gzip.compress(good), b"\x00" + zlib.compress(good)],
    }
    for name, make in nasty.corpus("dialogue", "shiptrack_event_history_by_order", "concsi").items():
        if any(
            word in name for word in (" MB", "000", "million", "again", "commas", "lines", "quotes", "spaces", "a long")
        ):
            continue
        case = make(record)
        if len(case.body) <= _LONGEST and case.content_type in found and not case.headers:
            found[case.content_type].append(case.body)
    found["application/x-parquet"].append(nasty.write_parquet({name: [value] for name, value in record.items()}))
    return found
