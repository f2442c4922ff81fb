from __future__ import annotations

import json

import pytest

from model_directories import PRIMARY, RECORD

pytestmark = pytest.mark.usefixtures("fresh_process")

BODY = json.dumps(RECORD).encode()
JSON = {"Content-Type": "application/json"}
SECRET = "a-very-private-dialogue"


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
    output = capsys.readouterr().out
    (logged,) = [entry for entry in map(json.loads, output.splitlines()) if entry["level"] == "ERROR"]
    assert logged["message"].startswith("a handler failed: ValueError in predict_fn line ")
    assert SECRET not in output


TOOLKIT_ERROR = """
from sagemaker_inference.errors import GenericInferenceToolkitError

def input_fn(body, content_type):
    if body == "teapot":
        raise GenericInferenceToolkitError(418, "I am a teapot", "short and stout")
    if body == "odd":
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
    if isinstance(body, str):
        return f"{body} {accept}"
    return model.decode() + body.decode(), "text/x-made"
"""


def test_a_users_transform_answers_alone(worker):
    made, taken = worker(TRANSFORM)(
        (b"x", {"content-type": "a/b"}), (b"x", {"content-type": "a/b", "accept": "application/octet-stream"})
    )

    assert (made.body, made.headers["content-type"]) == (b"modelx", "text/x-made")
    assert (taken.body, taken.headers["content-type"]) == (b"modelx", "application/octet-stream")


@pytest.mark.parametrize("media", ["application/json", "text/csv", "Text/CSV; charset=utf-8"])
@pytest.mark.parametrize("accept", ["*/*", "", None])
def test_a_users_transform_gets_text_and_the_default_too(worker, media, accept):
    headers = {"content-type": media} | ({} if accept is None else {"accept": accept})
    ask = worker(TRANSFORM, variables={"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"})

    (answer,) = ask((b"1,2", headers))

    assert (answer.body, answer.headers["content-type"]) == (b"1,2 text/csv", "text/csv")


HOOKS = """
calls = []

def pre_model_fn(model_dir): calls.append(["pre_model_fn", model_dir])

def model_fn(model_dir):
    calls.append(["model_fn", model_dir])
    return calls

def model_warmup_fn(model_dir, model, context):
    model.append(["model_warmup_fn", model_dir, context.system_properties["server_name"]])

def input_fn(body, content_type): return body

def predict_fn(data, model): return repr(model)

def output_fn(prediction, accept): return prediction, "text/plain"
"""


def test_what_a_user_does_before_and_after_loading_is_done_once(worker, tmp_path):
    first, second = worker(HOOKS)((b"x", {}), (b"x", {}))

    model = str(tmp_path / "model")
    expected = [["pre_model_fn", model], ["model_fn", model], ["model_warmup_fn", model, "MMS"]]
    assert first.body.decode() == repr(expected)
    assert second == first


@pytest.mark.parametrize("name", ["pre_model_fn", "model_warmup_fn"])
def test_one_of_the_two_is_enough_and_the_rest_is_ours(worker, name, capsys):
    (answer,) = worker(f"def {name}(*arguments): print('called:', {name!r})\n")((BODY, JSON))

    assert answer.status == 200
    assert capsys.readouterr().out.count(f"called: {name}\n") == 1


ECHO = """
def model_fn(model_dir): return None

def input_fn(body, content_type): return type(body).__name__

def predict_fn(data, model): return data

def output_fn(prediction, accept): return f"{prediction} {accept}"
"""


@pytest.mark.parametrize("media", ["application/json", "text/csv"])
def test_a_users_input_fn_gets_text_where_the_toolkit_gives_text(worker, media):
    (answer,) = worker(ECHO)((b"1,2", {"content-type": media, "accept": "text/plain"}))

    assert answer.body == b"str text/plain"


@pytest.mark.parametrize("media", ["application/x-parquet", "application/jsonlines", "text/plain"])
def test_a_users_input_fn_gets_bytes_of_other_types(worker, media):
    (answer,) = worker(ECHO)((b"\xff", {"content-type": media, "accept": "text/plain"}))

    assert answer.body == b"bytes text/plain"


def test_a_text_for_a_users_function_that_is_none_is_an_error(worker):
    (answer,) = worker(ECHO)((b"\xff", {"content-type": "text/csv"}))

    assert (answer.status, answer.error()["message"]) == (400, "The body is not valid UTF-8.")


def test_a_users_input_fn_may_hand_its_text_to_ours(worker):
    code = (
        "import inference\n\ndef input_fn(body, content_type): return inference.input_fn(body.strip(), content_type)\n"
    )

    (answer,) = worker(code)((BODY, JSON))

    assert len(answer.json()["predictions"]) == 1


def test_a_users_predict_fn_alone_leaves_the_input_to_ours(worker):
    (answer,) = worker("def predict_fn(data, model): return model.predict(data)\n")((BODY, JSON))

    assert len(answer.json()["predictions"]) == 1


def test_a_users_output_fn_gets_the_default_where_anything_is_accepted(worker):
    (answer,) = worker(ECHO)((b"\xff", {"content-type": "application/x-parquet", "accept": "*/*"}))

    assert (answer.body, answer.headers["content-type"]) == (b"bytes application/json", "application/json")


def test_a_users_module_may_have_another_name(worker, tmp_path):
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "mine.py").write_text(CHAIN)

    (answer,) = worker(variables={"SAGEMAKER_PROGRAM": "mine.py"})((b"x", {}))

    assert answer.body.startswith(b"['model'")


def test_an_answer_that_nobody_accepts_costs_no_prediction(worker):
    (answer,) = worker(FAILING)((BODY, {**JSON, "Accept": "image/png"}))

    assert (answer.status, answer.error()["code"]) == (406, "not_acceptable")
