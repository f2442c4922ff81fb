from __future__ import annotations

import re

import pytest

from trimodal import errors
from trimodal.errors import ArtifactError, RequestError, SettingsError, StartupError, TrimodalError

STATUSES = {
    "MalformedBody": (400, "malformed_body"),
    "NotFound": (404, "not_found"),
    "MethodNotAllowed": (405, "method_not_allowed"),
    "NotAcceptable": (406, "not_acceptable"),
    "RequestTimeout": (408, "request_timeout"),
    "AlreadyLoaded": (409, "already_loaded"),
    "PayloadTooLarge": (413, "payload_too_large"),
    "UnsupportedMedia": (415, "unsupported_content_type"),
    "InvalidRecord": (422, "invalid_record"),
    "ModelUnusable": (422, "model_unusable"),
    "TooManyRequests": (429, "too_many_requests"),
    "InferenceFailed": (500, "inference_failed"),
    "Unavailable": (503, "unavailable"),
    "InferenceTimeout": (504, "timeout"),
    "OutOfMemory": (507, "out_of_memory"),
}


def subclasses(base):
    return {base, *(found for child in base.__subclasses__() for found in subclasses(child))}


def drawn_tree():
    """Reads the tree of the docstring: (name, name of the parent, status or None) of each line."""
    lines = re.findall(r"^( *(?:[│├└─ ]*))([A-Z]\w+)(?: +(\d{3}))?", errors.__doc__.split("::", 1)[1], re.MULTILINE)
    path, rows = [], []
    for indent, name, status in lines:
        while path and path[-1][0] >= len(indent):
            path.pop()
        rows.append((name, path[-1][1] if path else "Exception", int(status) if status else None))
        path.append((len(indent), name))
    return rows


def own_classes():
    return {cls for cls in subclasses(TrimodalError) if cls.__module__ == errors.__name__}


@pytest.mark.parametrize("name", STATUSES)
def test_status_and_code_stand_on_the_class(name):
    cls = getattr(errors, name)
    assert (cls.status, cls.code) == STATUSES[name]
    assert issubclass(cls, RequestError)


def test_every_request_error_is_tested_here():
    assert {cls.__name__ for cls in own_classes() if issubclass(cls, RequestError)} == {"RequestError", *STATUSES}


def test_codes_are_unlike():
    assert len({code for _, code in STATUSES.values()}) == len(STATUSES)


def test_the_docstring_draws_the_whole_tree():
    drawn = {name: parent for name, parent, _ in drawn_tree()}
    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in own_classes()}


def test_the_docstring_gives_each_status():
    assert {name: status for name, _, status in drawn_tree() if status} == {
        name: status for name, (status, _) in STATUSES.items()
    }


def test_an_error_may_name_a_record():
    error = errors.InvalidRecord("Record 3 lacks the field amount.", record=3)
    assert (str(error), error.record) == ("Record 3 lacks the field amount.", 3)
    assert errors.InvalidRecord("no").record is None


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            errors.InvalidRecord("Record 2 lacks the field amount.", record=2),
            b'{"error": {"code": "invalid_record", "message": "Record 2 lacks the field amount.", "record": 2}}',
        ),
        (
            errors.MalformedBody("The body is not valid UTF-8."),
            b'{"error": {"code": "malformed_body", "message": "The body is not valid UTF-8.", "record": null}}',
        ),
        (
            errors.InferenceFailed("The model failed on this request.", record=0),
            b'{"error": {"code": "inference_failed", "message": "The model failed on this request.", "record": 0}}',
        ),
    ],
)
def test_the_answer_of_an_error_names_code_message_and_record(error, body):
    assert error.to_json() == body


def test_errors_of_start_up_have_no_status():
    for cls in (StartupError, SettingsError, ArtifactError):
        assert not issubclass(cls, RequestError)
        assert not hasattr(cls, "status")


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\x85", "\u2028", "\ud800"])
def test_a_name_out_of_a_strangers_file_cannot_begin_a_line_of_its_own(sign):
    assert str(ArtifactError(f"would build a{sign}b")) == "would build a\ufffdb"
    assert RequestError(f"a{sign}b").to_dict()["error"]["message"] == "a\ufffdb"
