from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from mms.context import Context, RequestProcessor

from model_directories import PRIMARY, RECORD, SECONDARY
from model_directories import write_model_directory as write
from trimodal.errors import ArtifactError, SettingsError
from trimodal.servers.mms import handle
from trimodal.servers.workers import ANSWERED, failure, ready_workers

pytestmark = pytest.mark.usefixtures("fresh_process")

BODY = json.dumps(RECORD).encode()
JSON = {"Content-Type": "application/json"}
SECRET = "a-very-private-dialogue"


@dataclass(frozen=True)
class Answer:
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    def error(self) -> dict[str, object]:
        content = self.json()
        assert list(content) == ["error"]
        assert sorted(content["error"]) == ["code", "message", "record"]
        return content["error"]


def context_of(directory, headers=()):
    context = Context("model", str(directory), {}, len(headers) or 1, None, "1.1.11")
    context.request_processor = [RequestProcessor(item) for item in headers]
    return context


@pytest.fixture
def worker(tmp_path, environment):
    """Loads a model directory as a worker does; returns a function that sends a batch of (body, headers)."""

    def load(code=None, variables=None, **changes):
        environment(**(variables or {}))
        directory = write(tmp_path / "model", **changes)
        if code is not None:
            (directory / "code").mkdir()
            (directory / "code" / "inference.py").write_text(code)
        assert handle(None, context_of(directory)) is None

        def ask(*requests):
            context = context_of(directory, [headers for _, headers in requests])
            bodies = handle([{"body": body} for body, _ in requests], context)
            return [
                Answer(*context.get_response_status(index), context.get_response_headers(index), body)
                for index, body in enumerate(bodies)
            ]

        return ask

    return load


def test_one_request(worker):
    (answer,) = worker()((BODY, JSON))

    assert (answer.status, answer.phrase) == (200, "OK")
    assert answer.headers == {"content-type": "application/json", ANSWERED: "1"}
    (prediction,) = answer.json()["predictions"]
    assert list(prediction) == ["legacy-score", "calibrated-score", "score-percentile"]
    assert 0 < float(prediction["legacy-score"]) < 1


def test_each_request_of_a_batch_has_its_own_answer(worker):
    csv = f'x,1.5,2,"{RECORD[PRIMARY]}","{RECORD[SECONDARY]}"\n'.encode()

    good, broken, unknown, table, missing, refused, again = worker()(
        (BODY, JSON),
        (b"{", JSON),
        (BODY, {"Content-Type": "image/png"}),
        (csv, {"Content-Type": "text/csv", "Accept": "text/csv"}),
        (json.dumps([RECORD, {**RECORD, "amount": "x"}]).encode(), JSON),
        (BODY, JSON | {"Accept": "image/png"}),
        (BODY, JSON),
    )

    assert [good.status, broken.status, unknown.status, table.status] == [200, 400, 415, 200]
    assert [missing.status, refused.status, again.status] == [422, 406, 200]
    assert (broken.error()["code"], broken.phrase) == ("malformed_body", "Bad Request")
    assert unknown.error()["code"] == "unsupported_content_type"
    assert missing.error() == {
        "code": "invalid_record",
        "message": "Record 1: the field amount is not a number.",
        "record": 1,
    }
    assert refused.error()["code"] == "not_acceptable"
    assert table.headers["content-type"] == "text/csv"
    assert len(table.body.decode().strip().split(",")) == 3
    assert good == again
    assert {answer.headers[ANSWERED] for answer in (good, broken, unknown, table, missing, refused)} == {"1"}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytes.decode])
def test_a_body_may_come_as_bytes_or_text(worker, kind):
    ask = worker()

    assert ask((kind(BODY), JSON)) == ask((BODY, JSON))


def test_a_body_may_come_under_another_name(worker, tmp_path):
    worker()
    context = context_of(tmp_path / "model", [JSON])

    (body,) = handle([{"data": BODY}], context)

    assert json.loads(body)["predictions"]


def test_a_request_without_body_is_an_error(worker, tmp_path):
    worker()
    context = context_of(tmp_path / "model", [JSON])

    (body,) = handle([{}], context)

    assert context.get_response_status(0) == (400, "Bad Request")
    assert json.loads(body)["error"]["code"] == "malformed_body"


@pytest.mark.xfail(strict=True, raises=TypeError, reason="the body is converted outside of the try")
def test_a_body_that_is_none_does_not_fail_its_neighbours(worker):
    good, empty = worker()((BODY, JSON), (None, JSON))

    assert (good.status, empty.status) == (200, 400)


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
@pytest.mark.parametrize("value", ["application/jsonlines", "Application/JSONLines; charset=UTF-8"])
def test_headers_and_media_types_may_be_written_in_any_case(worker, name, value):
    (answer,) = worker()((BODY + b"\n" + BODY, {name: value, "ACCEPT": "Text/CSV; q=0.5"}))

    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv")
    assert len(answer.body.splitlines()) == 2


def test_without_headers_json_is_read_and_the_default_written(worker):
    ask = worker(variables={"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"})

    plain, any_type, wanted = ask((BODY, {}), (BODY, {"Accept": "*/*"}), (BODY, {"Accept": "application/json"}))

    assert [a.headers["content-type"] for a in (plain, any_type, wanted)] == [
        "text/csv",
        "text/csv",
        "application/json",
    ]


def test_an_error_holds_no_path_no_trace_and_nothing_of_the_record(worker, capsys):
    private = {**RECORD, PRIMARY: f"[bom]{SECRET}[eom]"}
    ask = worker()
    capsys.readouterr()

    answers = ask(
        (json.dumps({**private, "amount": SECRET}).encode(), JSON),
        (json.dumps({**private, "amount": [SECRET]}).encode(), JSON),
        (json.dumps(private).encode()[:-1], JSON),
        (json.dumps([private, 5]).encode(), JSON),
        (SECRET.encode(), {"Content-Type": "text/csv"}),
        (SECRET.encode(), {"Content-Type": f"text/{SECRET}"}),
        (json.dumps(private).encode(), JSON | {"Accept": SECRET}),
        (json.dumps({PRIMARY: SECRET}).encode(), JSON),
    )

    assert [answer.status for answer in answers] == [422, 422, 400, 400, 422, 415, 406, 422]
    for answer in answers:
        text = json.dumps(answer.error())
        assert SECRET not in text
        assert "Traceback" not in text
        assert "/" not in text.replace("application/", "").replace("text/", "")
    assert SECRET not in capsys.readouterr().out


FAILING = """
def predict_fn(data, model):
    rows = list(data.rows)
    raise ValueError(f"cannot score {rows} of /opt/ml/model")
"""


def test_an_unexpected_error_of_a_handler_is_500_without_detail(worker, capsys):
    private = json.dumps({**RECORD, PRIMARY: SECRET}).encode()
    ask = worker(FAILING)
    capsys.readouterr()

    (answer,) = ask((private, JSON))

    assert (answer.status, answer.phrase) == (500, "Internal Server Error")
    assert answer.error() == {
        "code": "inference_failed",
        "message": "The model failed on this request.",
        "record": None,
    }
    (line,) = capsys.readouterr().out.splitlines()
    logged = json.loads(line)
    assert logged["message"].startswith("a handler failed: ValueError in predict_fn line ")
    assert (logged["level"], SECRET in line) == ("ERROR", False)


TOOLKIT_ERROR = """
from sagemaker_inference.errors import GenericInferenceToolkitError

def input_fn(body, content_type):
    if body == b"teapot":
        raise GenericInferenceToolkitError(418, "I am a teapot", "short and stout")
    if body == b"odd":
        raise GenericInferenceToolkitError(599)
    return body

def predict_fn(data, model): return data

def output_fn(prediction, accept): return prediction, "text/plain"
"""


def test_an_error_of_the_toolkit_keeps_its_status(worker):
    teapot, odd, good = worker(TOOLKIT_ERROR)((b"teapot", {}), (b"odd", {}), (b"good", {}))

    assert (teapot.status, teapot.phrase) == (418, "I'm a Teapot")
    assert teapot.error() == {"code": "handler_error", "message": "I am a teapot", "record": None}
    assert (odd.status, odd.phrase) == (599, "Error")
    assert odd.error()["message"] == "Invalid Request"
    assert (good.status, good.body, good.headers["content-type"]) == (200, b"good", "text/plain")


OTHER_STATUS = """
class UpstreamError(Exception):
    status_code = 200

def predict_fn(data, model): raise UpstreamError
"""


@pytest.mark.xfail(strict=True, reason="any exception with a status_code sets the answer's status, even to 200")
def test_the_status_of_some_other_exception_is_not_taken_over(worker):
    (answer,) = worker(OTHER_STATUS)((BODY, JSON))

    assert answer.error()["code"] == "inference_failed"
    assert answer.status == 500


CHAIN = """
def model_fn(model_dir): return ["model"]

def input_fn(body, content_type, context): return [body, content_type, context.system_properties["server_name"]]

def predict_fn(data, model): return model + data

def output_fn(prediction, accept): return str([*prediction, accept])
"""


def test_a_users_functions_are_chained(worker):
    (answer,) = worker(CHAIN)((b"x", {"content-type": "application/x-thing", "accept": "text/plain"}))

    assert answer.body == str(["model", b"x", "application/x-thing", "MMS", "text/plain"]).encode()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")


TRANSFORM = """
def model_fn(model_dir): return b"model"

def transform_fn(model, body, content_type, accept):
    if accept == "application/octet-stream":
        return bytearray(model + body)
    return model.decode() + body.decode(), "text/x-made"
"""


def test_a_users_transform_answers_alone(worker):
    made, taken = worker(TRANSFORM)(
        (b"x", {"content-type": "a/b"}), (b"x", {"content-type": "a/b", "accept": "application/octet-stream"})
    )

    assert (made.body, made.headers["content-type"]) == (b"modelx", "text/x-made")
    assert (taken.body, taken.headers["content-type"]) == (b"modelx", "application/octet-stream")


ECHO = """
def model_fn(model_dir): return None

def input_fn(body, content_type): return type(body).__name__

def predict_fn(data, model): return data

def output_fn(prediction, accept): return f"{prediction} {accept}"
"""


@pytest.mark.xfail(strict=True, reason="the toolkit gives a user's input_fn JSON and CSV as str; here it gets bytes")
@pytest.mark.parametrize("media", ["application/json", "text/csv"])
def test_a_users_input_fn_gets_text_where_the_toolkit_gives_text(worker, media):
    (answer,) = worker(ECHO)((b"1,2", {"content-type": media, "accept": "text/plain"}))

    assert answer.body == b"str text/plain"


def test_a_users_input_fn_gets_bytes_of_other_types(worker):
    (answer,) = worker(ECHO)((b"\xff", {"content-type": "application/x-parquet", "accept": "text/plain"}))

    assert answer.body == b"bytes text/plain"


@pytest.mark.xfail(strict=True, reason="the toolkit gives a user's output_fn the default for */*, which curl sends")
def test_a_users_output_fn_gets_the_default_where_anything_is_accepted(worker):
    (answer,) = worker(ECHO)((b"\xff", {"content-type": "application/x-parquet", "accept": "*/*"}))

    assert (answer.body, answer.headers["content-type"]) == (b"bytes application/json", "application/json")


def test_a_users_module_may_have_another_name(worker, tmp_path):
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "mine.py").write_text(CHAIN)

    (answer,) = worker(variables={"SAGEMAKER_PROGRAM": "mine.py"})((b"x", {}))

    assert answer.body.startswith(b"['model'")


# Loading


def test_a_loaded_worker_reports_ready(worker, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    worker(variables={"TRIMODAL_RUN_DIR": run_dir})

    assert (ready_workers(run_dir), failure(run_dir)) == (1, None)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: (d / "model.onnx").unlink(), ArtifactError, "model.onnx is missing from the model directory"),
        (lambda d: (d / "model.onnx").write_bytes(b"x"), ArtifactError, "model.onnx cannot be loaded"),
        (lambda d: (d / "hyperparameters.json").write_text("{"), ArtifactError, "hyperparameters.json is not valid"),
    ],
)
def test_a_directory_that_cannot_be_loaded_is_reported(tmp_path, environment, damage, error, message):
    environment(TRIMODAL_RUN_DIR=tmp_path)
    directory = write(tmp_path / "model")
    damage(directory)

    with pytest.raises(error, match=message):
        handle(None, context_of(directory))

    assert failure(tmp_path).startswith(message)
    assert ready_workers(tmp_path) == 0


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("def model_fn(model_dir): raise OSError('no weights')", OSError, "model_fn failed: OSError: no weights"),
        ("def model_fn(): ...", TypeError, "model_fn failed: TypeError: "),
        ("import no_such_module", ArtifactError, "code/inference.py cannot be imported: ModuleNotFoundError"),
        (
            "def transform_fn(*a): ...\ndef input_fn(*a): ...",
            ArtifactError,
            "code/inference.py: define either transform_fn or",
        ),
    ],
)
def test_a_users_module_that_fails_is_reported(worker, tmp_path, code, error, message):
    with pytest.raises(error):
        worker(code, variables={"TRIMODAL_RUN_DIR": tmp_path})

    assert failure(tmp_path).startswith(message)
    assert ready_workers(tmp_path) == 0


def test_a_failure_to_load_without_anybody_listening_is_still_an_error(tmp_path, environment):
    environment()

    with pytest.raises(ArtifactError, match="does not exist"):
        handle(None, context_of(tmp_path / "absent"))


def test_a_bad_environment_is_an_error(tmp_path, environment):
    environment(SCORE_FORMAT="roman")

    with pytest.raises(SettingsError, match="SCORE_FORMAT='roman' must be one of string, number"):
        handle(None, context_of(write(tmp_path)))


def test_the_environment_sets_the_form_of_the_answers(worker):
    (answer,) = worker(variables={"SCORE_FORMAT": "number", "RESPONSE_FIELDS": "id,output-label"})((BODY, JSON))

    (prediction,) = answer.json()["predictions"]
    assert isinstance(prediction["legacy-score"], float)
    assert prediction["order_id"] == "A-1"
    assert prediction["output-label"] in ("class-0", "class-1")
