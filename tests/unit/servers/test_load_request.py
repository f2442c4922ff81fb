from __future__ import annotations

import json
import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.errors import MalformedBody
from trimodal.servers.load_request import LoadRequest, parse_load_request

ASCII = "".join(map(chr, range(33, 127)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["model_name", "url"]) | st.text(), inner),
)


def test_what_sagemaker_sends():
    body = b'{\n  "model_name": "a1b2c3",\n  "url": "/opt/ml/models/a1b2c3/model",\n  "more": 1\n}'

    assert parse_load_request(body) == LoadRequest("a1b2c3", Path("/opt/ml/models/a1b2c3/model"))


@given(st.text(ASCII, min_size=1, max_size=256), st.text(string.printable.strip() + "äß字", max_size=200))
def test_every_good_request_is_read_as_it_is(name, rest):
    body = json.dumps({"model_name": name, "url": f"/{rest}"}).encode()

    assert parse_load_request(body) == LoadRequest(name, Path(f"/{rest}"))


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_body_is_the_one_error(body):
    with suppress(MalformedBody):
        request = parse_load_request(body)
        assert request.path.is_absolute()
        assert set(request.name) <= set(ASCII)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(
            ({"model_name": name}, "model_name must be")
            for name in (None, 1, "", " ", "a b", "ä", "a\n", "x" * 257, ["a"])
        ),
        *(
            ({"url": url}, "url must be")
            for url in (None, 1, "", "model", "./model", "s3://b/k", "/a\0b", "/a\nb", "/\ud800", "/" + "x" * 4096)
        ),
    ],
)
def test_what_is_wrong_is_named(changes, said):
    body = json.dumps({"model_name": "a", "url": "/b", **changes}).encode()
    with pytest.raises(MalformedBody, match=said):
        parse_load_request(body)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'"x"', b"null"])
def test_another_form(body):
    with pytest.raises(MalformedBody, match=r"^The body (is not valid JSON|must be a JSON object)"):
        parse_load_request(body)
