from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeployError
from deploy.release import LONGEST, Release, S3Path
from endpoint_template import resources

IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/trimodal"
MODEL = "s3://models/demo/model.tar.gz"
RELEASE = Release(f"{IMAGE}:one", MODEL)
VALUES = st.dictionaries(
    st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True).map(lambda name: f"X_{name}"),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50),
    max_size=5,
)


@given(environment=VALUES)
def test_environment_reaches_the_template_as_it_was_set(environment):
    release = RELEASE.changed(None, None, [f"{name}={value}" for name, value in environment.items()], ())
    container = resources(release.template())["Model"]["Properties"]["PrimaryContainer"]
    assert {name: value for name, value in container["Environment"].items() if name.startswith("X_")} == environment
    assert Release.from_json(release.to_json()) == release


def test_parameters_name_image_model_and_repository():
    assert RELEASE.parameters("aws-cn") == {
        "ImageUri": f"{IMAGE}:one",
        "ImageRepositoryArn": "arn:aws-cn:ecr:eu-west-1:123456789012:repository/team/trimodal",
        "ModelBucket": "models",
        "ModelKey": "demo/model.tar.gz",
        "Release": RELEASE.to_json(),
    }
    digest = Release(f"{IMAGE}@sha256:{'0' * 64}", MODEL)
    assert digest.parameters("aws")["ImageUri"] == digest.image


def test_changes_keep_the_rest():
    release = RELEASE.changed(None, None, ["LOG_LEVEL=DEBUG", "SCORE_FORMAT=number"], ())
    changed = release.changed(f"{IMAGE}:two", None, ["LOG_LEVEL=ERROR"], ["SCORE_FORMAT"])
    assert changed == Release(f"{IMAGE}:two", MODEL, {"LOG_LEVEL": "ERROR"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "trimodal:one"}, "pulls from ECR only"),
        ({"image": IMAGE}, "NAME:TAG"),
        ({"model": "/models/demo"}, "--model '/models/demo' must be s3://BUCKET/KEY"),
        ({"model": "s3://models"}, "s3://BUCKET/KEY"),
        ({"sets": ["LOG_LEVEL"]}, "must be NAME=VALUE"),
        ({"sets": ["1X=2"]}, "must be NAME=VALUE"),
        ({"sets": ["ENDPOINT_NAME=other"]}, "the template sets it"),
        ({"sets": ["X=\n"]}, "printable ASCII"),
        ({"sets": ["X=é"]}, "printable ASCII"),
        ({"sets": [f"X={'x' * 1025}"]}, "1024"),
        ({"sets": [f"X{i}={'x' * 1000}" for i in range(5)]}, f"of {LONGEST} characters"),
        ({"sets": ["MODEL_PRECISION=fast"]}, "MODEL_PRECISION='fast' must be one of"),
        ({"unsets": ["LOG_LEVEL"]}, "does not set it"),
    ],
)
def test_what_cannot_work_stops_before_the_cloud(changes, message):
    arguments = {"image": None, "model": None, "sets": (), "unsets": (), **changes}
    with pytest.raises(DeployError) as caught:
        RELEASE.changed(**arguments)
    assert message in str(caught.value)


def test_a_stack_of_unknown_origin_is_refused():
    for text in ("", "{}", "[]", '{"image": 1, "model": 2, "environment": 3}'):
        with pytest.raises(DeployError, match="does not say which release"):
            Release.from_json(text)


def test_s3_paths_come_back():
    assert S3Path.parse("s3://bucket/a/b/", "--data").url == "s3://bucket/a/b/"
