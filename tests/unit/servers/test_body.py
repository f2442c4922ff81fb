"""Bodies in pieces: within their limit, unpacked, and never more of them than there is memory for."""

import asyncio
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from trimodal.errors import MalformedBody, PayloadTooLarge, TooManyRequests, UnsupportedMedia
from trimodal.servers.body import BodyReader


def request(*pieces, gone=False, **headers):
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": names}, receive)


def read(reader, *pieces, **headers):
    return asyncio.run(reader.read(request(*pieces, **headers)))


def pack(body, bits=zlib.MAX_WBITS | 16):
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(body) + packer.flush()


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_pieces_are_joined(pieces):
    assert read(BodyReader(500, 500), *pieces) == b"".join(pieces)


@given(st.binary(max_size=5000), st.integers(1, 40), st.sampled_from(["gzip", "deflate", "GZIP "]))
def test_packed_bodies_come_in_pieces_of_any_size(body, size, coding):
    packed = pack(body) if "g" in coding.lower() else pack(body, zlib.MAX_WBITS)
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert read(BodyReader(5000, 5000), *pieces, content_encoding=coding) == body


def test_too_large_by_its_own_word_by_its_size_and_unpacked():
    reader = BodyReader(1000, 10_000)
    for pieces, headers in (
        ([], {"content_length": "1001"}),
        ([b"x" * 600] * 2, {}),
        ([pack(b"x" * 1_000_000)], {"content_encoding": "gzip"}),
    ):
        with pytest.raises(PayloadTooLarge):
            read(reader, *pieces, **headers)
    assert reader._held == 0


def test_packed_wrong():
    for body in (b"no gzip", pack(b"x" * 1000)[:-5]):
        with pytest.raises(MalformedBody):
            read(BodyReader(5000, 5000), body, content_encoding="gzip")
    with pytest.raises(UnsupportedMedia):
        read(BodyReader(5000, 5000), b"x", content_encoding="br")


def test_all_bodies_together_are_bounded():
    reader = BodyReader(1000, 2000)
    held = [read(reader, b"x" * 900) for _ in range(2)]
    with pytest.raises(TooManyRequests):
        read(reader, b"x" * 900)
    reader.release(len(held[0]))
    assert len(read(reader, b"x" * 900)) == 900


def test_a_client_that_goes_away_leaves_nothing_behind():
    reader = BodyReader(1000, 2000)
    with pytest.raises(ClientDisconnect):
        read(reader, b"x" * 500, gone=True)
    assert reader._held == 0


def test_what_follows_a_packed_body_is_refused_and_not_kept():
    for more in (b"x", pack(b"y"), bytes(4000)):
        with pytest.raises(MalformedBody):
            read(BodyReader(5000, 5000), pack(b"x"), more, content_encoding="gzip")


def test_packed_nothing_counts_as_it_was_sent():
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    blocks = [packer.compress(b"x") + packer.flush(zlib.Z_FULL_FLUSH)]
    blocks += [b"\0\0\0\xff\xff"] * 1000  # empty blocks, each a whole one
    with pytest.raises(PayloadTooLarge):
        read(BodyReader(1000, 10_000), *blocks, content_encoding="gzip")
