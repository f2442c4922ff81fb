"""Findings as a data frame; the only module that imports pandas."""

from __future__ import annotations

from typing import TypeAlias

import pandas as pd

from trimodal.bench.findings import Findings

Frame: TypeAlias = pd.DataFrame


def to_frame(findings: Findings) -> Frame:
    """Returns one row for each variant, traffic and batch size; `attrs` tell host, skipped variants and notes."""
    frame = pd.DataFrame(findings.rows())
    frame.attrs |= {
        "machine": findings.hardware.to_json(),
        "versions": dict(findings.versions),
        "skipped": dict(findings.skipped),
        "did_not_help": findings.not_helped(),
        "notes": list(findings.notes),
    }
    return frame
