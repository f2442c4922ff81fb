"""Both servers give the same answers, byte for byte."""

import json

import pytest

pytestmark = pytest.mark.parametrize("kind", ["asgi"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def other(start):
    """The same model under the other server."""
    return start(MODEL_SERVER="mms")


@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/jsonlines"])
def test_both_servers_give_the_same_bytes(demo, other, golden, accept):
    records = [item["record"] for item in golden]
    for part in (records, records[:1], records[3:20]):
        ours, theirs = (server.post(json.dumps(part), accept=accept) for server in (demo, other))
        assert (ours.status, ours.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])
        assert ours.body == theirs.body


def test_both_servers_give_the_same_errors(demo, other, golden):
    record = golden[0]["record"]
    for body, content_type, accept in (
        ("{", "application/json", None),
        (json.dumps(record | {"concsi": "abc"}), "application/json", None),
        ("{}", "text/plain", None),
        (json.dumps(record), "application/json", "image/png"),
    ):
        ours, theirs = (server.post(body, content_type, accept) for server in (demo, other))
        assert (ours.status, ours.error) == (theirs.status, theirs.error)
