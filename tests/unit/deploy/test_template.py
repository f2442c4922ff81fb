"""The template, variant by variant: what cfn-lint cannot know, and what moto leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.release import TEMPLATE, Release
from endpoint_template import REQUIRED, alarm_metrics, dashboard_metrics, metric_names, resources
from trimodal.metrics.table import ENDPOINT, METRICS

HOSTINGS = ("real-time", "serverless", "asynchronous", "multi-model")
GUARDS = ("latency", "fallback-level", "provider-fallback", "error-rate", "server-errors", "memory", "abort")
KNOWN = {"ProviderFallback", "Latency", "FallbackLevel", "Errors", "Requests"}


def variant(found):
    (item,) = found["EndpointConfig"]["Properties"]["ProductionVariants"]
    return item


def alarms(found):
    return {name: item for name, item in found.items() if item["Type"] == "AWS::CloudWatch::Alarm"}


def statement(found, sid):
    (policy,) = found["Role"]["Properties"]["Policies"]
    return {item["Sid"]: item for item in policy["PolicyDocument"]["Statement"]}.get(sid)


def test_cfn_lint_has_nothing_to_say(tmp_path):
    with_environment = tmp_path / "endpoint.yaml"
    release = Release(REQUIRED["ImageUri"], "s3://models/demo/model.tar.gz", {"RESPONSE_FIELDS": 'a"b: #'})
    with_environment.write_text(release.template())
    command = [str(Path(sys.executable).with_name("cfn-lint")), str(TEMPLATE), str(with_environment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_metrics_are_the_containers_own():
    assert metric_names() - set(METRICS) == set()
    for row in dashboard_metrics(resources()["Dashboard"]):
        if row[0] == "TrimodalInference" and len(row) == 6:  # a search names the endpoint alone
            assert (row[2], row[4]) == ENDPOINT


def test_metric_names_are_found_in_alarms_and_dashboard():
    found = resources()
    used = {item["MetricName"] for alarm in alarms(found).values() for item in alarm_metrics(alarm)}
    shown = {row[1] for row in dashboard_metrics(found["Dashboard"])}
    assert used - shown == {"AbortDeployment", "Invocations"}
    assert metric_names() >= KNOWN
    assert "ModelLatency" not in metric_names()
    assert metric_names("AWS/SageMaker") == {"ModelLatency", "OverheadLatency", "Invocation5XXErrors", "Invocations"}


@pytest.mark.parametrize("hosting", HOSTINGS)
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_container_is_told_where_it_runs(hosting, accelerator):
    found = resources(Hosting=hosting, Accelerator=accelerator, VariantName="Main")
    container = found["Model"]["Properties"]["PrimaryContainer"]
    assert container["Environment"] == {
        "ENDPOINT_NAME": "demo",
        "VARIANT_NAME": "Main",
        "METRICS_NAMESPACE": "TrimodalInference",
    }
    assert container["ModelDataUrl"] == "s3://models/demo/model.tar.gz"
    assert container["Mode"] == ("MultiModel" if hosting == "multi-model" else "SingleModel")
    assert variant(found)["VariantName"] == "Main"


@pytest.mark.parametrize("capability", ["accept-bind-to-port", "multi-models"])
def test_the_image_says_what_it_can_do(capability):
    text = TEMPLATE.parents[2].joinpath("Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    labels = [word for line in text.splitlines() if line.startswith("LABEL ") for word in line.split()]
    assert f"com.amazonaws.sagemaker.capabilities.{capability}=true" in labels


@pytest.mark.parametrize("hosting", ["real-time", "asynchronous", "multi-model"])
def test_gpu_hosts_get_a_driver_for_cuda_13(hosting):
    cpu, gpu = (variant(resources(Hosting=hosting, Accelerator=name)) for name in ("cpu", "gpu"))
    assert gpu["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"
    assert "InferenceAmiVersion" not in cpu
    assert (cpu["InstanceType"], gpu["InstanceType"]) == ("ml.c7i.xlarge", "ml.g6.xlarge")


def test_start_up_outlasts_the_containers_own_limit():
    found = variant(resources())
    assert int(found["ContainerStartupHealthCheckTimeoutInSeconds"]) > 600
    assert int(found["ModelDataDownloadTimeoutInSeconds"]) > 600


def test_serverless_has_no_instances():
    found = resources(Hosting="serverless")
    assert set(variant(found)) == {"ModelName", "VariantName", "InitialVariantWeight", "ServerlessConfig"}
    assert not [item for item in found.values() if item["Type"].startswith("AWS::ApplicationAutoScaling")]
    assert "DeploymentConfig" not in found["Endpoint"]["Properties"]


def test_asynchronous_answers_go_to_the_data_bucket_and_scale_from_zero():
    found = resources(Hosting="asynchronous", DataBucket="data", DataPrefix="a/", MinInstances="0")
    output = found["EndpointConfig"]["Properties"]["AsyncInferenceConfig"]["OutputConfig"]
    assert output == {"S3OutputPath": "s3://data/a/answers/", "S3FailurePath": "s3://data/a/failures/"}
    assert variant(found)["InitialInstanceCount"] == 1
    assert found["ScalableTarget"]["Properties"]["MinCapacity"] == "0"
    assert "ScaleOnRequestsPolicy" not in found
    policy = found["ScaleOnBacklogPolicy"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    assert policy["CustomizedMetricSpecification"]["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert found["WakeUpAlarm"]["Properties"]["AlarmActions"] == ["WakeUpPolicy"]


def test_real_time_tracks_requests_between_its_bounds():
    found = resources(MinInstances="3", MaxInstances="7", TargetInvocationsPerInstance="120")
    target = found["ScalableTarget"]["Properties"]
    assert target["ResourceId"] == "endpoint/demo/variant/AllTraffic"
    assert (target["MinCapacity"], target["MaxCapacity"]) == ("3", "7")
    policy = found["ScaleOnRequestsPolicy"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    assert policy["TargetValue"] == "120"
    assert policy["PredefinedMetricSpecification"] == {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}


@pytest.mark.parametrize(("mode", "key"), [("CANARY", "CanarySize"), ("LINEAR", "LinearStepSize")])
def test_traffic_shifts_in_steps(mode, key):
    found = resources(TrafficMode=mode, TrafficPercent="20", TrafficWaitSeconds="900")
    routing = found["Endpoint"]["Properties"]["DeploymentConfig"]["BlueGreenUpdatePolicy"][
        "TrafficRoutingConfiguration"
    ]
    size = {"Type": "CAPACITY_PERCENT", "Value": "20"}
    assert routing == {"Type": mode, "WaitIntervalInSeconds": "900", key: size}


def test_every_own_alarm_rolls_an_update_back():
    found = resources()
    rollback = found["Endpoint"]["Properties"]["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    names = {item["AlarmName"] for item in rollback}
    assert names == set(alarms(found))
    assert {alarm["Properties"]["AlarmName"] for alarm in alarms(found).values()} == {f"demo-{name}" for name in GUARDS}
    unguarded = resources(AutoRollback="false")["Endpoint"]["Properties"]["DeploymentConfig"]
    assert set(unguarded) == {"BlueGreenUpdatePolicy"}


@pytest.mark.parametrize(
    ("alarm", "metrics", "threshold"),
    [
        ("LatencyAlarm", [("TrimodalInference", "Latency", "p95")], "500"),
        ("FallbackLevelAlarm", [("TrimodalInference", "FallbackLevel", "Maximum")], 1),
        (
            "ProviderFallbackAlarm",
            [("TrimodalInference", "ProviderFallback", "Sum"), ("TrimodalInference", "Requests", "Sum")],
            "10",
        ),
        ("ErrorRateAlarm", [("TrimodalInference", "Errors", "Sum"), ("TrimodalInference", "Requests", "Sum")], "5"),
        (
            "ServerErrorAlarm",
            [("AWS/SageMaker", "Invocation5XXErrors", "Sum"), ("AWS/SageMaker", "Invocations", "Sum")],
            "5",
        ),
        ("MemoryAlarm", [("/aws/sagemaker/Endpoints", "MemoryUtilization", "Maximum")], "85"),
    ],
)
def test_alarms_look_at_this_endpoint_and_tell_somebody(alarm, metrics, threshold):
    found = resources(AlarmTopicArn="arn:aws:sns:eu-west-1:123456789012:alarms")[alarm]
    looked_at = alarm_metrics(found)
    assert [(item["Namespace"], item["MetricName"], item["Stat"]) for item in looked_at] == metrics
    for item in looked_at:
        assert item["Dimensions"] == [
            {"Name": "EndpointName", "Value": "demo"},
            {"Name": "VariantName", "Value": "AllTraffic"},
        ]
    properties = found["Properties"]
    assert (properties["Threshold"], properties["ComparisonOperator"]) == (threshold, "GreaterThanThreshold")
    assert properties["TreatMissingData"] == "notBreaching"
    assert properties["AlarmActions"] == ["arn:aws:sns:eu-west-1:123456789012:alarms"]


def test_abort_alarm_stays_as_it_was_set():
    properties = resources(AlarmTopicArn="arn:aws:sns:eu-west-1:123456789012:alarms")["AbortAlarm"]["Properties"]
    assert properties["TreatMissingData"] == "ignore"
    assert "AlarmActions" not in properties


def test_role_may_do_nothing_else():
    found = resources(DataBucket="data", DataPrefix="a/", MetricsNamespace="Ours")
    assert statement(found, "PullImage")["Resource"] == REQUIRED["ImageRepositoryArn"]
    assert statement(found, "ReadModel") == {
        "Sid": "ReadModel",
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::models/demo/model.tar.gz*",
    }
    metrics = statement(found, "PutMetrics")
    assert metrics["Condition"]["StringEquals"]["cloudwatch:namespace"][0] == "Ours"
    assert statement(found, "ReadAndWriteData")["Resource"] == "arn:aws:s3:::data/a/*"
    assert statement(resources(), "ReadAndWriteData") is None
    (policy,) = found["Role"]["Properties"]["Policies"]
    everywhere = [item["Sid"] for item in policy["PolicyDocument"]["Statement"] if item["Resource"] == "*"]
    assert everywhere == ["LogInToEcr", "PutMetrics"]
    actions = [action for item in policy["PolicyDocument"]["Statement"] for action in [item["Action"]]]
    assert not [action for action in actions if "*" in action]


@pytest.mark.parametrize("hosting", HOSTINGS)
def test_dashboard_is_of_this_endpoint(hosting):
    rows = dashboard_metrics(resources(Hosting=hosting)["Dashboard"])
    lines, searches = [[row for row in rows if len(row) == size] for size in (6, 4)]
    assert {tuple(row[2:]) for row in lines} == {("EndpointName", "demo", "VariantName", "AllTraffic")}
    assert searches == [["TrimodalInference", name, "EndpointName", "demo"] for name in ("StageLatency", "Errors")]
    assert len(lines) + len(searches) == len(rows)
