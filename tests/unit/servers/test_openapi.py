"""The OpenAPI document of the demo model and of other models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trimodal.loading.load import load_pipeline
from trimodal.servers.limits import execution_parameters
from trimodal.servers.openapi import describe
from trimodal.servers.typed import predict_steps
from trimodal.serving.decode import DECODERS
from trimodal.serving.steps import always, finish
from trimodal.settings import MIB, Settings

DEMO = Path(__file__).parents[3] / "scripts" / "models" / "demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    settings = Settings(model_dir=DEMO, fusion=False, optimized_dir=tmp_path_factory.mktemp("optimized"))
    return load_pipeline(settings)


@pytest.fixture(scope="module")
def record():
    return json.loads((DEMO / "golden.jsonl").read_text(encoding="utf-8").splitlines()[0])["record"]


def references(node):
    """Every `$ref` of a document."""
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references(item)


def test_a_record_has_the_models_own_fields(demo):
    document = describe(demo, Settings())
    schema = document["components"]["schemas"]["Record"]
    names = json.loads((DEMO / "hyperparameters.json").read_text(encoding="utf-8"))
    fields = {names["primary_text_name"], names["secondary_text_name"], *names["tab_field_list"]}
    assert set(schema["properties"]) == fields | {names["id_name"]}
    assert set(schema["required"]) == fields
    assert schema["properties"][names["primary_text_name"]]["type"] == "string"


def test_every_reference_is_there(demo):
    document = describe(demo, Settings())
    assert {name.rpartition("/")[2] for name in references(document)} <= set(document["components"]["schemas"])


def test_typed_answers_are_as_described(demo, record):
    content, media = finish(predict_steps(demo)(json.dumps([record]).encode(), always))
    (row,) = json.loads(content)["predictions"]
    described = describe(demo, Settings())["components"]["schemas"]["TypedScores"]
    properties = described["properties"]["predictions"]["items"]["properties"]
    assert media == "application/json"
    assert set(row) == set(properties)
    assert all(isinstance(row[name], float) for name, own in properties.items() if own.get("type") == "number")


def test_scores_are_described_as_they_are_written(demo):
    def score(model):
        answer = describe(model, Settings())["components"]["schemas"]["Scores"]
        return answer["properties"]["predictions"]["items"]["properties"]["legacy-score"]["type"]

    assert score(demo) == "string"
    assert score(replace(demo, form=replace(demo.form, numbers=True))) == "number"


def test_fields_are_required_only_where_the_model_says_so(demo):
    model = replace(demo, schema=replace(demo.schema, columns=None))
    assert "required" not in describe(model, Settings())["components"]["schemas"]["Record"]


def test_more_classes(demo):
    answer = describe(replace(demo, binary=False, classes=3), Settings())["components"]["schemas"]["Scores"]
    names = {f"{kind}prob_{number:02d}" for number in (1, 2, 3) for kind in ("", "calibrated_")}
    assert set(answer["properties"]["predictions"]["items"]["properties"]) == names
    assert set(answer["example"]["predictions"][0]) == names


def test_the_examples_of_requests_are_scored(demo):
    document = describe(demo, Settings())
    record = json.dumps(document["components"]["schemas"]["Record"]["example"])
    contents = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    expected, _ = demo.answer(record.encode(), "application/json", None)
    assert set(contents) == set(DECODERS)
    for media, content in contents.items():
        if "parquet" not in media:
            assert demo.answer(content.get("example", record).encode(), media, None)[0] == expected


def test_the_examples_of_answers_are_as_answers_are(demo, record):
    document = describe(demo, Settings())
    scores, typed = (document["components"]["schemas"][name]["example"] for name in ("Scores", "TypedScores"))
    for media, content in document["paths"]["/invocations"]["post"]["responses"]["200"]["content"].items():
        answer = demo.answer(json.dumps(record).encode(), "application/json", media)[0].decode()
        if media == "application/json":
            assert scores["predictions"][0].keys() == json.loads(answer)["predictions"][0].keys()
        elif "json" in media:
            assert content["example"].keys() == json.loads(answer).keys()
        else:
            assert content["example"] == "0.7500,0.7500,0.7500\n"
            assert len(answer) == len(content["example"])
    assert typed["predictions"] == [{**dict.fromkeys(("legacy-score", "calibrated-score", "score-percentile"), 0.75),
                                     "output-label": "class-1", "order_id": "A-1"}]  # fmt: skip


def test_every_error_has_its_own_example(demo):
    responses = describe(demo, Settings())["paths"]["/invocations"]["post"]["responses"]
    errors = {status: answer["content"]["application/json"]["example"]["error"]
              for status, answer in responses.items() if status != "200"}  # fmt: skip
    assert set(errors) == {"400", "406", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert len({error["code"] for error in errors.values()}) == len(errors)
    assert all(error["message"].endswith(".") for error in errors.values())


def test_the_introduction_names_the_fields(demo):
    text = describe(demo, Settings())["info"]["description"]
    assert "`dialogue`, `shiptrack" in text.replace(" and ", ", ")
    assert "9 tabular fields" in text
    assert "must be there" in text
    assert (
        "not there"
        in describe(replace(demo, schema=replace(demo.schema, columns=None)), Settings())["info"]["description"]
    )


def test_a_users_own_model_has_no_fields():
    document = describe(object(), Settings())
    assert set(document["components"]["schemas"]) == {"Error"}
    assert "/predict" not in document["paths"]
    assert {name.rpartition("/")[2] for name in references(document)} == {"Error"}


@pytest.mark.parametrize(
    ("concurrency", "payload", "expected"),
    [(2, 25, (2, 25)), (8, 25, (8, 12)), (1, 6, (1, 6)), (200, 25, (100, 1))],
)
def test_batch_transform_keeps_its_limit(concurrency, payload, expected):
    told = execution_parameters(Settings(max_payload=payload * MIB), concurrency)
    assert (told["MaxConcurrentTransforms"], told["MaxPayloadInMB"]) == expected
