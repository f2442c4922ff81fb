"""The commands that score: one file, or a batch in S3."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from deploy import calls
from deploy.errors import DeployError
from deploy.release import S3Path
from deploy.rollout import Cloud
from deploy.stack import State


def invoke(cloud: Cloud, options: argparse.Namespace) -> None:
    """Sends a file and prints the answer.

    Raises:
        DeployError: the container answered with an error, or an option does not fit the endpoint.
    """
    state = cloud.stack.get()
    headers = {"ContentType": calls.content_type_of(options.file, options.content_type), "Accept": options.accept}
    if state.parameters["Hosting"] == "asynchronous":
        answer = _invoke_later(cloud, state, options, headers)
    else:
        if options.target_model:
            headers["TargetModel"] = options.target_model
        body = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        answer = calls.invoke(cloud.client("sagemaker-runtime"), _endpoint(cloud, state), body, headers)
    print(calls.shown(answer))


def _invoke_later(cloud: Cloud, state: State, options: argparse.Namespace, headers: dict[str, str]) -> bytes:
    if options.file == "-":
        raise DeployError("An asynchronous endpoint reads from S3; name a file.")
    s3 = cloud.client("s3")
    data = _data(cloud, state)
    place = calls.upload(s3, Path(options.file), S3Path(data.bucket, f"{data.key}inputs"))
    job = cloud.client("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=_endpoint(cloud, state), InputLocation=place.url, **headers
    )
    print(f"the answer will be at {job['OutputLocation']}", file=sys.stderr)
    return calls.wait_for_answer(s3, job, options.poll, options.timeout)


def batch(cloud: Cloud, options: argparse.Namespace) -> None:
    """Scores files in S3 and waits for the end.

    Raises:
        DeployError: an option cannot be used, or the job failed.
    """
    state = cloud.stack.get()
    data = _data(cloud, state)
    source, target = S3Path.parse(options.input, "--input"), S3Path.parse(options.output, "--output")
    for option, place in (("--input", source), ("--output", target)):
        if not place.url.startswith(data.url):
            raise DeployError(f"{option} must lie below {data.url}, where the endpoint's role may read and write.")
    job = calls.Batch(
        name=f"{cloud.name[:40]}-{time.strftime('%Y%m%d-%H%M%S')}",
        model=state.outputs["ModelName"],
        metrics_as=f"{cloud.name}-batch",
        source=source,
        target=target,
        content_type=calls.content_type_of(options.input, options.content_type),
        accept=options.accept,
        instance_type=options.instance_type,
        instances=options.instances,
    )
    client = cloud.client("sagemaker")
    client.create_transform_job(**job.request())
    calls.wait_for_batch(client, job.name, options.poll)
    print(target.url)


def _endpoint(cloud: Cloud, state: State) -> str:
    return state.outputs.get("EndpointName", cloud.name)


def _data(cloud: Cloud, state: State) -> S3Path:
    place = S3Path(state.parameters["DataBucket"], state.parameters["DataPrefix"])
    if place.bucket == "none":
        raise DeployError(
            f"{cloud.name} has no place for data; give it one: `up {cloud.name} --data s3://BUCKET/KEY/`."
        )
    return place
