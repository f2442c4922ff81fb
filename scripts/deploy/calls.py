"""Requests to a running endpoint: one at a time, asynchronous, or a batch transform over S3."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.errors import DeployError
from deploy.release import S3Path

CONTENT_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".csv": "text/csv",
    ".parquet": "application/x-parquet",
}
BY_LINE = ("application/jsonlines", "text/csv")
MISSING = ("404", "NoSuchKey", "NotFound")


def content_type_of(name: str, given: str | None) -> str:
    """Returns the content type that was given, or what the file's name says.

    Raises:
        DeployError: neither tells.
    """
    suffix = Path(name).suffix.lower()
    if given is None and suffix not in CONTENT_TYPES:
        raise DeployError(f"{name}: name its content type with --content-type, such as application/json.")
    return given or CONTENT_TYPES[suffix]


def invoke(client: Any, endpoint: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Sends one request and returns the answer's body.

    Args:
        client: boto3's SageMaker runtime client.
        endpoint: the endpoint's name.
        body: the request's body.
        headers: `ContentType`, `Accept`, and for a multi-model endpoint `TargetModel`.

    Raises:
        DeployError: the container answered with an error; tells its status and message.
    """
    try:
        answer: bytes = client.invoke_endpoint(EndpointName=endpoint, Body=body, **headers)["Body"].read()
    except ClientError as err:
        if err.response["Error"]["Code"] != "ModelError":
            raise
        status, message = err.response.get("OriginalStatusCode"), err.response.get("OriginalMessage")
        raise DeployError(f"The container answered {status}: {message}") from err
    return answer


def upload(client: Any, path: Path, folder: S3Path) -> S3Path:
    """Uploads a file under the hash of its content, so that nothing is ever overwritten, and returns its place."""
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    place = S3Path(folder.bucket, f"{folder.key.rstrip('/')}/{name}/{path.name}")
    client.upload_file(str(path), place.bucket, place.key)
    return place


def wait_for_answer(client: Any, job: Mapping[str, str], poll: float, seconds: float) -> bytes:
    """Waits for the answer to an asynchronous request and returns its body.

    Args:
        client: boto3's S3 client.
        job: what InvokeEndpointAsync returned.
        poll: seconds between two looks.
        seconds: the longest to wait.

    Raises:
        DeployError: the request failed, or there is no answer in time.
    """
    until = time.monotonic() + seconds
    while True:
        answer = _read(client, job["OutputLocation"])
        if answer is not None:
            return answer
        failure = _read(client, job["FailureLocation"]) if job.get("FailureLocation") else None
        if failure is not None:
            raise DeployError(f"The request failed: {failure.decode(errors='replace')}")
        if time.monotonic() > until:
            raise DeployError(f"No answer after {seconds:g} s; it will be at {job['OutputLocation']}.")
        time.sleep(poll)


def _read(client: Any, url: str) -> bytes | None:
    place = S3Path.parse(url, "the answer's place")
    try:
        body: bytes = client.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
    except ClientError as err:
        if err.response["Error"]["Code"] in MISSING:
            return None
        raise
    return body


@dataclass(frozen=True)
class Batch:
    """A batch transform.

    Attributes:
        name: the job's name.
        model: the SageMaker model that scores.
        metrics_as: the endpoint that its metrics name; the real one's alarms are not for batches.
        source: prefix of the input files.
        target: prefix of the output files; each is named as its input, with `.out`.
        content_type: of the inputs; those of lines are split into requests by lines.
        accept: media type of the outputs.
        instance_type: such as `ml.c5.xlarge`.
        instances: how many.
    """

    name: str
    model: str
    metrics_as: str
    source: S3Path
    target: S3Path
    content_type: str
    accept: str
    instance_type: str
    instances: int

    def request(self) -> dict[str, Any]:
        """Returns the arguments of CreateTransformJob."""
        lines = self.content_type in BY_LINE
        return {
            "TransformJobName": self.name,
            "ModelName": self.model,
            "Environment": {"ENDPOINT_NAME": self.metrics_as},
            "BatchStrategy": "MultiRecord" if lines else "SingleRecord",
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self.source.url}},
                "ContentType": self.content_type,
                "SplitType": "Line" if lines else "None",
            },
            "TransformOutput": {
                "S3OutputPath": self.target.url,
                "Accept": self.accept,
                "AssembleWith": "Line" if lines else "None",
            },
            "TransformResources": {"InstanceType": self.instance_type, "InstanceCount": self.instances},
        }


def wait_for_batch(client: Any, name: str, poll: float) -> None:
    """Prints the job's state whenever it changes, until it ends.

    Raises:
        DeployError: the job failed or was stopped.
    """
    last = ""
    while True:
        job = client.describe_transform_job(TransformJobName=name)
        status = job["TransformJobStatus"]
        if status != last:
            print(f"{time.strftime('%H:%M:%S')} {name} {status}", flush=True)
            last = status
        if status == "Completed":
            return
        if status in ("Failed", "Stopped"):
            reason = job.get("FailureReason") or "its log is in /aws/sagemaker/TransformJobs"
            raise DeployError(f"The batch transform {name} is {status}: {reason}")
        time.sleep(poll)


def shown(body: bytes) -> str:
    """Returns an answer as text to print; JSON as one compact line."""
    text = body.decode("utf-8", errors="replace")
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text.rstrip("\n")
