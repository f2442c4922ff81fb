"""What the deploy command does when something is wrong, against moto over HTTP.

Moto's changes are done at once and never fail: where a stack must be busy or rolled back, its answers are rewritten on
their way.
"""

from __future__ import annotations

import json

import pytest

import deploy_cloud
from deploy_cloud import FAST, IMAGE

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")
TWO = ("--image", f"{IMAGE}:two")


@pytest.fixture
def cloud():
    with deploy_cloud.running() as cloud:
        yield cloud


def put_alarm(cloud, name, state="OK"):
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(
        AlarmName=f"demo-{name}", Namespace="TrimodalInference", MetricName="Latency", Statistic="Maximum", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanThreshold",
    )  # fmt: skip
    client.set_alarm_state(AlarmName=f"demo-{name}", StateValue=state, StateReason="the test says so")


def alarm_state(cloud, name):
    (alarm,) = cloud.client("cloudwatch").describe_alarms(AlarmNames=[f"demo-{name}"])["MetricAlarms"]
    return alarm["StateValue"]


def failing(status):
    """Makes the stack end in a status, and its last events failures."""

    def rewrite(action, body):
        body = body.replace("<StackStatus>UPDATE_COMPLETE<", f"<StackStatus>{status}<")
        failed = "<ResourceStatus>UPDATE_FAILED</ResourceStatus><ResourceStatusReason>alarm demo-latency went off"
        done = "<ResourceStatus>UPDATE_COMPLETE</ResourceStatus>"
        return body.replace(done, f"{failed}</ResourceStatusReason>") if action == "DescribeStackEvents" else body

    return rewrite


@pytest.mark.parametrize("command", ["canary", "promote", "rollback", "status", "invoke", "batch"])
def test_an_endpoint_that_is_not_there_is_named(cloud, command):
    more = {
        "canary": TWO,
        "invoke": ("x.json",),
        "batch": ("--input", "s3://models/in.csv", "--output", "s3://models/out/"),
    }
    message = cloud.run(command, "demo", *more.get(command, ()), status=1)
    assert message == "deploy: There is no endpoint 'demo' in this account and region; `up demo` makes it.\n"


def test_up_wants_to_know_what_to_serve(cloud):
    assert "name what it serves with --image and --model" in cloud.run("up", "demo", status=1)
    assert "must be NAME=VALUE" in cloud.run("up", "demo", "--parameter", "LatencyThresholdMs", status=1)


def test_up_again_changes_what_is_named(cloud):
    cloud.up("--set", "LOG_LEVEL=DEBUG")
    cloud.run("up", "demo", "--min", "3", "--parameter", "LatencyThresholdMs=300", *FAST)
    sent = cloud.parameters("UpdateStack")
    assert (sent["MinInstances"], sent["LatencyThresholdMs"], sent["ImageUri"]) == ("3", "300", f"{IMAGE}:one")
    assert json.loads(sent["Release"])["environment"] == {"LOG_LEVEL": "DEBUG"}
    cloud.run("up", "demo", *TWO, *FAST)
    sent = cloud.parameters("UpdateStack")
    assert (sent["MinInstances"], sent["ImageUri"], sent["TrafficMode"]) == ("3", f"{IMAGE}:two", "ALL_AT_ONCE")


def test_canary_and_rollback_ask_for_their_own_guards(cloud):
    cloud.up()
    cloud.run("canary", "demo", *TWO, "--percent", "20", "--wait", "1200", *FAST)
    sent = cloud.parameters("UpdateStack")
    assert {name: sent[name] for name in ("TrafficMode", "TrafficPercent", "TrafficWaitSeconds", "AutoRollback")} == {
        "TrafficMode": "CANARY",
        "TrafficPercent": "20",
        "TrafficWaitSeconds": "1200",
        "AutoRollback": "true",
    }
    assert json.loads(sent["PreviousRelease"])["image"] == f"{IMAGE}:one"
    cloud.run("rollback", "demo", *FAST)
    sent = cloud.parameters("UpdateStack")
    assert (sent["TrafficMode"], sent["AutoRollback"]) == ("ALL_AT_ONCE", "false")
    assert (sent["ImageUri"], sent["PreviousRelease"] or "") == (f"{IMAGE}:one", "")


@pytest.mark.parametrize(
    ("before", "arguments", "message"),
    [
        ((), ("--image", f"{IMAGE}:one"), "serves this release already"),
        (("--min", "1"), TWO, "takes two instances"),
        (("--hosting", "serverless"), TWO, "Serverless endpoints cannot shift traffic"),
        ((), (*TWO, "--linear", "--wait", "3600"), "of at most 28800"),
        ((), ("--set", "MODEL_PRECISION=fast"), "The container would refuse to start: MODEL_PRECISION='fast'"),
    ],
)
def test_canary_refuses_what_would_not_work(cloud, before, arguments, message):
    cloud.up(*before)
    assert message in cloud.run("canary", "demo", *arguments, status=1)


def test_canary_waits_for_quiet_alarms(cloud):
    cloud.up()
    put_alarm(cloud, "latency", "ALARM")
    put_alarm(cloud, "abort", "ALARM")
    assert "Alarms are on (latency)" in cloud.run("canary", "demo", *TWO, status=1)
    assert alarm_state(cloud, "abort") == "OK", "left over from an abort; a new update must not stop at once"
    assert "alarm     latency ALARM: the test says so" in cloud.run("status", "demo")


def test_a_canary_that_alarms_took_back_has_failed(cloud):
    cloud.up()
    cloud.rewrite = failing("UPDATE_ROLLBACK_COMPLETE")
    message = cloud.run("canary", "demo", *TWO, *FAST, status=1)
    assert message == "deploy: demo is UPDATE_ROLLBACK_COMPLETE. demo: alarm demo-latency went off\n"


def test_rollback_aborts_a_running_update(cloud):
    cloud.up()
    cloud.run("canary", "demo", *TWO, *FAST)
    put_alarm(cloud, "abort")
    seen = []

    def rewrite(_action, body):
        seen.append(alarm_state(cloud, "abort"))
        status = "UPDATE_ROLLBACK_COMPLETE" if "ALARM" in seen[:-1] else "UPDATE_IN_PROGRESS"
        return body.replace("<StackStatus>UPDATE_COMPLETE<", f"<StackStatus>{status}<")

    cloud.rewrite = rewrite
    assert "the update is rolled back" in cloud.run("rollback", "demo", *FAST)
    assert seen[0] == "OK"
    assert alarm_state(cloud, "abort") == "OK"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("UPDATE_IN_PROGRESS", "wait for its end"),
        ("UPDATE_ROLLBACK_FAILED", "aws cloudformation continue-update-rollback --stack-name demo"),
        ("ROLLBACK_COMPLETE", "run `down demo`, then `up` again"),
    ],
)
def test_a_stack_that_cannot_be_changed_tells_what_to_do(cloud, status, message):
    cloud.up()
    cloud.rewrite = lambda _action, body: body.replace("<StackStatus>CREATE_COMPLETE<", f"<StackStatus>{status}<")
    assert message in cloud.run("promote", "demo", status=1)


def test_asynchronous_answers_are_fetched(cloud, tmp_path):
    request = tmp_path / "request.json"
    request.write_text("{}")
    cloud.up("--hosting", "asynchronous")
    assert "has no place for data" in cloud.run("invoke", "demo", request, status=1)
    cloud.run("up", "demo", "--data", "s3://models/data/", *FAST)
    assert json.loads(cloud.run("invoke", "demo", request, *FAST)) == {"default": "response"}
    (found,) = cloud.client("s3").list_objects_v2(Bucket="models", Prefix="data/inputs/")["Contents"]
    assert found["Key"].endswith("/request.json")


def test_batch_stays_where_the_role_may_go(cloud):
    cloud.up("--data", "s3://models/data")
    message = cloud.run("batch", "demo", "--input", "s3://other/in.csv", "--output", "s3://models/data/out", status=1)
    assert "--input must lie below s3://models/data/" in message
    message = cloud.run("batch", "demo", "--input", "s3://models/data/x", "--output", "s3://models/data/o", status=1)
    assert "name its content type" in message


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Set AWS_PROFILE"),
        ({"AWS_DEFAULT_REGION": ""}, "name it with --region"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "Check the network"),
        ({"AWS_PROFILE": "nobody"}, "~/.aws/config"),
    ],
)
def test_a_machine_that_is_not_set_up_is_told_how(cloud, environ, message):
    printed = cloud.run("status", "demo", status=1, HOME="/nonexistent", **environ)
    assert message in printed
    assert printed.count("\n") == 1


def test_a_missing_file_is_named(cloud):
    cloud.up()
    assert (
        cloud.run("invoke", "demo", "/nothing.json", status=1) == "deploy: /nothing.json: No such file or directory.\n"
    )


def test_size_is_a_number(cloud):
    assert "is not from 10 to 50" in cloud.run("canary", "demo", *TWO, "--percent", "5", status=2)
