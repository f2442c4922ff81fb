"""Requests that no client should send: bodies and framings that break, starve or fool a server which trusts its input.

Each is made from a good record when it is asked for, so that the large ones cost nothing until they are sent. The
answer to each must be a prediction or one of our own 4xx errors, and must never quote `CANARY`.
"""

from __future__ import annotations

from nasty.bodies import encodings, json_bodies, lines_and_csv, texts
from nasty.files import coded, media_types, parquet_files, write_parquet
from nasty.framing import framings
from nasty.parts import CANARY, Make, Nasty

__all__ = ["CANARY", "Nasty", "corpus", "framings", "write_parquet"]


def corpus(text: str, other_text: str, number: str) -> dict[str, Make]:
    """Returns the requests by name.

    Args:
        text: name of a text field whose steps hold `html_normalizer`.
        other_text: name of the other text field.
        number: name of a tabular field.
    """
    return {
        **json_bodies(text, other_text, number),
        **texts(text, other_text),
        **encodings(text),
        **lines_and_csv(number),
        **parquet_files(text, number),
        **media_types(),
        **coded(),
    }
