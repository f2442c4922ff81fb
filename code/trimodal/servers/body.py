"""Reads a request's body: within its limit of bytes, and unpacked where the client packed it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from trimodal.errors import MalformedBody, PayloadTooLarge, TooManyRequests, UnsupportedMedia

if TYPE_CHECKING:
    from starlette.requests import Request

MIB = 1024 * 1024

_PACKED = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""Content coding to the window bits that `zlib` reads it with (RFC 9110, section 8.4.1)."""


class BodyReader:
    """Reads bodies; bounds each of them, and all that are held at one time.

    Attributes:
        limit: bytes of the largest body, as sent and as unpacked.
        budget: bytes of all bodies that are held at one time; more are answered 429.
    """

    def __init__(self, limit: int, budget: int) -> None:
        self.limit = limit
        self.budget = max(limit, budget)
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Reads one body; whoever has worked it off gives it back with `release`.

        Raises:
            PayloadTooLarge: it is larger than `limit`.
            TooManyRequests: the bodies that are held leave no room for it.
            MalformedBody: it is not in the coding that `Content-Encoding` names.
            UnsupportedMedia: that coding is unknown.
            ClientDisconnect: the client has gone.
        """
        if int(request.headers.get("content-length") or 0) > self.limit:
            raise too_large(self.limit)
        parts: list[bytes] = []
        size = 0
        try:
            coding = request.headers.get("content-encoding", "")
            async for chunk in unpacked(request.stream(), coding, self.limit):
                size += len(chunk)
                self._held += len(chunk)
                parts.append(chunk)
                self._check(size)
        except BaseException:
            self._held -= size
            raise
        return b"".join(parts)

    def release(self, size: int) -> None:
        """Takes note that a body of so many bytes is not held any more."""
        self._held -= size

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise too_large(self.limit)
        if self._held > self.budget:
            raise TooManyRequests("The requests that wait fill the memory for them; try again in a few seconds.")


def too_large(limit: int) -> PayloadTooLarge:
    """Returns the error of a body of more than `limit` bytes."""
    return PayloadTooLarge(f"The body is larger than {limit // MIB} MB; send fewer records.")


def not_http() -> MalformedBody:
    """Returns the error of what cannot be read as a request."""
    return MalformedBody("This is not a valid HTTP request, or its head is too large; check framing and headers.")


async def unpacked(chunks: AsyncIterator[bytes], coding: str, limit: int) -> AsyncIterator[bytes]:
    """Yields a body's bytes, at most a little more than `limit`.

    Args:
        chunks: the body as it was sent.
        coding: its `Content-Encoding`; empty for none.
        limit: bytes of the largest body.

    Raises:
        MalformedBody: it is not in that coding, or something follows it.
        UnsupportedMedia: the coding is unknown.
        PayloadTooLarge: it is larger than `limit` as it was sent.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if coding not in _PACKED:
        raise UnsupportedMedia(f"This Content-Encoding is not supported; send one of {', '.join(_PACKED)}, or none.")
    try:
        async for piece in _inflated(chunks, _PACKED[coding], limit):
            yield piece
    except zlib.error as err:
        raise MalformedBody("The body does not match its Content-Encoding.") from err


async def _inflated(chunks: AsyncIterator[bytes], bits: int, limit: int) -> AsyncIterator[bytes]:
    unpacker = zlib.decompressobj(bits)
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:  # empty blocks unpack to nothing, however many there are
            raise too_large(limit)
        rest = chunk
        while rest:
            yield unpacker.decompress(rest, MIB)
            rest = unpacker.unconsumed_tail
            await asyncio.sleep(0)
        if unpacker.unused_data:  # which zlib would keep, however much comes
            raise zlib.error("data after the end")
    while piece := unpacker.decompress(unpacker.unconsumed_tail, limit):
        yield piece
    if not unpacker.eof:
        raise zlib.error("no end")
