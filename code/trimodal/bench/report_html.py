"""One HTML file that opens anywhere, offline: pictures, tables, host, and what was not measured and why."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape

from trimodal.bench.findings import Findings
from trimodal.bench.tables import Table, host_lines, make_tables

CAPTIONS = {
    "speedup": "Speed-up over the baseline, by batch size. Hatched: its outputs are refused.",
    "throughput": "Throughput as batches grow. Dotted: its outputs are refused.",
    "latency": "Latency of one call: median, 95th and 99th percentile over requests of realistic lengths.",
    "memory": "Memory of each variant's own process, and the size of its files.",
    "frontier": "Latency against throughput: what no other variant beats is joined by the line.",
    "waterfall": "What each step takes away from the time of one record.",
    "roofline": "Each variant under the measured peak of products and the measured memory bandwidth.",
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1150px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}img{max-width:100%;height:auto}
figure{margin:1.2rem 0}figcaption,.note{color:#444;font-size:.9rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{border-bottom:1px solid #ccc;padding:.25rem .6rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{background:#f3f3f3}td.wrong{color:#a00;white-space:normal;min-width:16rem}
code{background:#f3f3f3;padding:0 .2rem}
"""


def to_html(findings: Findings, pictures: Mapping[str, bytes]) -> str:
    """Returns the report.

    Args:
        findings: what was found.
        pictures: SVG by name.
    """
    title = escape(f"{findings.model}: optimization report, {findings.date}")
    parts = [
        f"<h1>{title}</h1>",
        *(f"<p>{_text(line)}</p>" for line in host_lines(findings)),
        *(_figure(name, svg) for name, svg in pictures.items()),
        *(_table(table) for table in make_tables(findings)),
        _listed("What did not help", findings.not_helped()),
        _listed("Not measured, and why", (f"{name}: {why}" for name, why in findings.skipped.items())),
        _listed("How each was made", (f"{m.candidate.name}: {m.candidate.note}" for m in findings.measured)),
        _listed("How it was measured", findings.notes),
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n{body}\n'
        "</body></html>\n"
    )


def _figure(name: str, svg: bytes) -> str:
    caption = escape(CAPTIONS.get(name, name))
    data = base64.b64encode(svg).decode()
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>{note}'


def _cell(text: str) -> str:
    mark = ' class="wrong"' if text.startswith("WRONG") else ""
    return f"<td{mark}>{escape(text)}</td>"


def _listed(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines) or "<li>nothing</li>"
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>"


def _text(line: str) -> str:
    """Escapes a line; what stands between backticks is code."""
    parts = escape(line).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
