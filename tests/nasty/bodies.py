"""JSON, JSON lines and CSV, their texts, and texts in the wrong encoding."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from nasty.parts import CANARY, CSV, JSON, LINES, MB, Make, Nasty, Record, change


def json_bodies(text: str, other_text: str, number: str) -> dict[str, Make]:
    """Returns JSON of every bad kind."""
    values = {
        "NaN": "NaN",
        "infinity": "-Infinity",
        "1e400": "1e400",
        "1e39": "1e39",
        "minus zero": "-0.0",
        "tiny": "1e-400",
        "4300 digits": "9" * 4300,
        "4301 digits": "9" * 4301,
        "text of digits": f'"{"9" * 5000}"',
        "hex": '"0x10"',
        "underscores": '"1_000"',
        "other digits": '"\u0661\u0662"',
        "nul": '"1\\u0000"',
        "true": "true",
        "list": "[1]",
        "object": f'{{"{CANARY}": 1}}',
        "canary": f'"{CANARY}"',
        "formula": f'"=cmd|{CANARY}!A1"',
        "deep list": "[" * 940 + "]" * 940,
        "deep object": '{"a":' * 940 + "1" + "}" * 940,
        "a million digits": f"1.{'1' * MB}",
        "a text of a million digits": f'"1.{"1" * MB}"',
    }
    bodies: dict[str, Callable[[Record], bytes]] = {
        **{f"value: {name}": lambda r, v=value: change(r, number, v) for name, value in values.items()},
        "text is a number": lambda r: change(r, text, "9" * 4300),
        "text is a list": lambda r: change(r, text, f'["{CANARY}"]'),
        "text is null": lambda r: change(r, text, "null"),
        "text is true": lambda r: change(r, other_text, "true"),
        "extra value of 10 MB": lambda r: change(r, CANARY, b'"' + b"x" * 10 * MB + b'"'),
        "extra list of 20 MB": lambda r: change(r, CANARY, b"[" + b"[]," * 7 * MB + b"[]]"),
        "extra texts of 20 MB": lambda r: change(r, CANARY, b"[" + b'"ab",' * 4 * MB + b'""]'),
        "key of 10 MB": lambda r: json.dumps({**r, "k" * 10 * MB: 1}).encode(),
        "a key twice": lambda r: json.dumps(r).encode()[:-1] + f', "{number}": 1, "{number}": 2}}'.encode(),
        "300,000 keys": lambda r: json.dumps({**r, **{str(i): 0 for i in range(300_000)}}).encode(),
        "8,000,000 records": lambda _: b"[" + b"{}," * 8 * MB + b"{}]",
        "100,001 records": lambda _: json.dumps([{}] * 100_001).encode(),
        "500 good records": lambda r: json.dumps([r] * 500).encode(),
        "100,000 brackets": lambda _: b"[" * 100_000,
        "brackets, closed": lambda _: b"[" * 100_000 + b"]" * 100_000,
        "33 levels": lambda r: change(r, CANARY, "[" * 32 + "]" * 32),
        "many towers": lambda _: b"[" + b",".join([b"[" * 30 + b"]" * 30] * 100_000) + b"]",
        "quotes without end": lambda _: b'{"a": "' + b'\\"' * 10 * MB,
        "commas": lambda _: b"," * 20 * MB,
        "colons": lambda _: b"{" + b":" * 20 * MB,
        "white space": lambda _: b" \n" * 12 * MB,
        "cut": lambda r: json.dumps(r).encode()[:-20],
        "two documents": lambda r: json.dumps(r).encode() * 2,
        "comment": lambda r: b"/* x */" + json.dumps(r).encode(),
        "single quotes": lambda r: repr(dict(r)).encode(),
        "trailing comma": lambda r: json.dumps(r).encode()[:-1] + b",}",
        "a number alone": lambda _: b"1",
        "a text alone": lambda _: json.dumps(CANARY).encode(),
        "an empty list": lambda _: b"[]",
        "an empty object": lambda _: b"{}",
        "nothing": lambda _: b"",
        "instances of nothing": lambda _: b'{"instances": []}',
        "instances of texts": lambda _: json.dumps({"instances": [CANARY]}).encode(),
        "instances within": lambda r: json.dumps({"instances": {"instances": [dict(r)]}}).encode(),
        "prototype": lambda r: change(r, "__proto__", f'{{"{number}": 1}}'),
        "a class": lambda r: change(r, "py/object", '"os.system"'),
    }
    return {f"json: {name}": lambda r, make=make: Nasty(make(r)) for name, make in bodies.items()}


def texts(text: str, other_text: str) -> dict[str, Make]:
    """Returns texts that the text steps find hard."""
    size = 190_000
    messages = {
        "begins": "[bom]" * 38_000,
        "begins, one end": "[bom]" * 38_000 + "[eom]",
        "ends": "[eom]" * 38_000,
        "messages": "[bom]a[eom]" * 17_000,
        "messages of markup": "[bom]<b[eom]" * 15_000,
        "one word": f"[bom]{'a' * size}[eom]",
        "signs": f"[bom]{'!' * size}[eom]",
        "combining marks": f"[bom]{chr(0x301) * size}[eom]",
        "wide": f"[bom]{chr(0x1F600) * size}[eom]",
        "ligatures": f"[bom]{chr(0xFDFA) * size}[eom]",  # each becomes 18 characters in NFKD
        "directions": f"[bom]{chr(0x202E)}{CANARY}[eom]",
        "surrogate": f"[bom]{chr(0xD800)}{CANARY}[eom]",
        "nul": f"[bom]{CANARY}\0{CANARY}[eom]",
        "control": "".join(map(chr, range(32))).join(("[bom]", "[eom]")),
        "special tokens": "[bom][CLS] [SEP] [PAD] [MASK] [UNK][eom]",
        "too long": f"[bom]{CANARY * 20_001}[eom]",
        "20 MB": f"[bom]{CANARY * 2 * MB}[eom]",
    }
    html = [
        "<",
        "<a ",
        "<a>",
        "</a",
        "<!--",
        "<!-- -",
        "<![CDATA[",
        "<!DOCTYPE ",
        "<?",
        "<a b='",
        '<a b="',
        "&",
        "&#",
        "&#x",
        "&amp",
        "&#99999999999;",
        "<script>",
        "<textarea>",
        "<x y=",
        "<a/",
        "]]>",
        "<![x[",
        "<svg/onload=",
    ]
    markup = {f"{sign} again and again": f"[bom]{CANARY} {(sign * size)[:size]}[eom]" for sign in html}
    places = [(messages, "first", text), (messages, "second", other_text), (markup, "first", text)]
    return {
        f"text: {name}, {place}": lambda r, f=field_name, m=message: Nasty(json.dumps({**r, f: m}).encode())
        for texts, place, field_name in places
        for name, message in texts.items()
    }


def encodings(text: str) -> dict[str, Make]:
    """Returns JSON that is not UTF-8, or hardly."""

    def of(encoding: str) -> Make:
        return lambda r: Nasty(json.dumps(dict(r), ensure_ascii=False).encode(encoding, "replace"))

    raw: dict[str, Callable[[bytes], bytes]] = {
        "mark before": lambda body: b"\xef\xbb\xbf" + body,
        "two marks": lambda body: b"\xef\xbb\xbf" * 2 + body,
        "mark within": lambda body: body.replace(b"{", b"{\xef\xbb\xbf", 1),
        "overlong": lambda body: body.replace(b'"', b"\xc0\xa2", 1),
        "surrogate in UTF-8": lambda body: body.replace(b"[bom]", b"[bom]\xed\xa0\x80", 1),
        "latin-1 within": lambda body: body.replace(b"[bom]", b"[bom]\xe9", 1),
        "nul before": lambda body: b"\0" + body,
        "nul after": lambda body: body + b"\0",
        "nul within": lambda body: body.replace(b"[bom]", b"[bom]\0", 1),
        "form feed": lambda body: b"\x0c" + body,
        "noise": lambda _: np.random.default_rng(1).bytes(MB),
    }
    wide = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037"]
    return {
        **{f"encoding: {name}": of(name) for name in wide},
        **{
            f"encoding: {name}": lambda r, f=spoil: Nasty(f(json.dumps({**r, text: f"[bom]{CANARY}[eom]"}).encode()))
            for name, spoil in raw.items()
        },
        "encoding: charset": lambda r: Nasty(json.dumps(dict(r)).encode(), f"{JSON}; charset=utf-16", statuses=(415,)),
    }


def lines_and_csv(number: str) -> dict[str, Make]:
    """Returns JSON lines and CSV of every bad kind."""
    lines: dict[str, Callable[[Record], bytes]] = {
        "8,000,000": lambda _: b"{}\n" * 8 * MB,
        "blank": lambda _: b"\n" * 24 * MB,
        "spaces": lambda _: b" \t\n" * 8 * MB,
        "a bad one": lambda r: json.dumps(r).encode() + f'\n{{"{CANARY}"\n'.encode(),
        "a deep one": lambda r: json.dumps(r).encode() + b"\n" + b"[" * 100_000,
        "carriage returns": lambda r: (json.dumps(r) + "\r").encode() * 3,
        "line separators": lambda r: json.dumps(r).encode() + "\u2028".encode() + json.dumps(r).encode(),
        "record separators": lambda r: b"\x1e" + json.dumps(r).encode(),
    }
    cells: dict[str, Callable[[Record], bytes]] = {
        "commas": lambda _: b"," * 24 * MB,
        "lines": lambda _: b"a\n" * 12 * MB,
        "blank lines": lambda _: b"\n" * 24 * MB,
        "carriage returns": lambda _: b"a\r" * 1000,
        "quotes": lambda _: b'"' + b'""' * 12 * MB + b'"',
        "open quote": lambda _: b'"' + b"x" * 20 * MB,
        "quotes in the middle": lambda _: f'a"{CANARY}"b,1\n'.encode(),
        "nul": lambda _: f"1,{CANARY}\0,2\n".encode(),
        "formulas": lambda r: _csv(r, {number: f"=1+{CANARY}"}),
        "at sign": lambda r: _csv(r, {number: f"@SUM({CANARY})"}),
        "giant cell": lambda r: _csv(r, {number: CANARY * MB}),
        "header twice": lambda _: ",".join([number] * 2).encode() + b"\n1,2\n",
        "header alone": lambda r: ",".join(r).encode() + b"\n",
        "header of 2,000,000 names": lambda r: (",".join(r) + ",x" * 2 * MB).encode() + b"\n1\n",
        "header with a secret": lambda r: f"{','.join(r)},{CANARY}\n1,2\n".encode(),
        "semicolons": lambda r: ";".join(str(value) for value in r.values()).encode(),
        "tabs": lambda r: "\t".join(str(value) for value in r.values()).encode(),
        "another width": lambda _: f"{CANARY},{CANARY}\n".encode(),
    }
    return {
        **{f"lines: {name}": lambda r, make=make: Nasty(make(r), LINES) for name, make in lines.items()},
        **{f"csv: {name}": lambda r, make=make: Nasty(make(r), CSV) for name, make in cells.items()},
    }


def _csv(record: Record, changes: Record) -> bytes:
    row = {**record, **changes}
    cells = (f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values())
    return f"{','.join(row)}\n{','.join(cells)}\n".encode()
