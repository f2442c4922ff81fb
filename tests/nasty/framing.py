"""Requests that are not HTTP, or whose framing is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from nasty.parts import CANARY, MB


def framings(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of whole HTTP requests whose framing is wrong; the answer, if any, must be our own 4xx.

    Args:
        body: a good JSON body that holds `CANARY`.
    """
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    yield "not HTTP", CANARY.encode() + b"\r\n\r\n"
    yield "TLS", bytes.fromhex("16030100a5010000a10303") + bytes(160)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "HTTP/9.9", b"POST /invocations HTTP/9.9\r\n" + length + b"\r\n" + body
    yield "no colon", head + CANARY.encode() + b"\r\n\r\n"
    yield "nul in a header", head + b"X-A: a\0b\r\n" + length + b"\r\n" + body
    yield "length: not a number", head + b"Content-Length: " + CANARY.encode() + b"\r\n\r\n" + body
    yield "length: negative", head + b"Content-Length: -5\r\n\r\n" + body
    yield "length: too large to count", head + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + body
    yield "length: 10 GB", head + b"Content-Length: 10000000000\r\n\r\n" + body
    yield "length: two", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body
    yield "length: too short", head + b"Content-Length: 5\r\n\r\n" + body
    yield "length and chunks", head + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield "unknown transfer coding", head + b"Transfer-Encoding: bogus\r\n\r\n" + body
    yield "chunk: not a size", head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" + body + b"\r\n"
    yield "chunk: negative", head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body + b"\r\n"
    yield "chunk: endless size", head + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n" + body
    yield "chunk: no end of line", head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n"
    yield "a header of 1 MB", head + b"X-A: " + b"a" * MB + b"\r\n" + length + b"\r\n" + body
    yield "1,000 headers", head + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + length + b"\r\n" + body
    yield "an address of 1 MB", b"POST /invocations?" + b"a" * MB + b" HTTP/1.1\r\n" + length + b"\r\n" + body
    chunk = b"%x\r\n" % len(body) + body + b"\r\n"
    yield (
        "a trailer of 1 MB",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\nX-A: " + b"a" * MB + b"\r\n\r\n",
    )
    yield (
        "a chunk's extension of 1 MB",
        head + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"a" * MB + b"\r\n{}\r\n0\r\n\r\n",
    )
