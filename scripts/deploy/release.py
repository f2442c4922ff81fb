"""A release: what an endpoint serves, and how it becomes parameters and text of the template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

from deploy.errors import DeployError
from trimodal.errors import SettingsError
from trimodal.settings import Settings

TEMPLATE = Path(__file__).with_name("endpoint.yaml")
MARK = "          # the command writes the release's environment here\n"
RESERVED = ("ENDPOINT_NAME", "VARIANT_NAME", "METRICS_NAMESPACE")
LONGEST = 4096
"""Characters of a CloudFormation parameter."""

_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@\s]+)(?::[\w.-]+|@sha256:\w{64})")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,1023}")


class S3Path(NamedTuple):
    """A place in S3."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str, option: str) -> Self:
        """Splits `s3://BUCKET/KEY`.

        Raises:
            DeployError: the text has another form; names the option that it was given to.
        """
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket or not key:
            raise DeployError(f"{option} {url!r} must be s3://BUCKET/KEY.")
        return cls(bucket, key)

    @property
    def url(self) -> str:
        """The place as `s3://BUCKET/KEY`."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class Release:
    """What an endpoint serves.

    Attributes:
        image: image in ECR, with a tag or a digest.
        model: `s3://BUCKET/KEY` of a `model.tar.gz`; of a prefix, for a multi-model endpoint.
        environment: the container's settings, as the README's table names them.
    """

    image: str
    model: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            DeployError: the text is something else.
        """
        try:
            values = json.loads(text)
            return cls(values["image"], values["model"], dict(values["environment"]))
        except (ValueError, LookupError, TypeError) as err:
            raise DeployError(
                "The stack does not say which release it serves; name all of it with `up --image … --model …`."
            ) from err

    def to_json(self) -> str:
        """Writes the release for the stack's parameters.

        Raises:
            DeployError: too long for one.
        """
        text = json.dumps({"image": self.image, "model": self.model, "environment": dict(self.environment)})
        if len(text) > LONGEST:
            raise DeployError(f"The release takes {len(text)} of {LONGEST} characters; set fewer or shorter variables.")
        return text

    def changed(self, image: str | None, model: str | None, sets: Iterable[str], unsets: Iterable[str]) -> Self:
        """Returns the release with another image, model or environment.

        Args:
            image: the other image, or None.
            model: the other model, or None.
            sets: `NAME=VALUE` texts to add to the environment.
            unsets: names to take out of it.

        Raises:
            DeployError: a text or a value cannot be used.
        """
        environment = {**self.environment, **environment_of(sets)}
        for name in unsets:
            if name not in environment:
                raise DeployError(f"--unset {name}: the release does not set it; see `status`.")
            del environment[name]
        release = replace(self, image=image or self.image, model=model or self.model, environment=environment)
        release.parameters("aws")  # a bad value stops here, not in the cloud
        return release

    def parameters(self, partition: str) -> dict[str, str]:
        """Returns the template's parameters that stand for the release.

        Args:
            partition: AWS's name for its part of the world, such as `aws` or `aws-cn`.

        Raises:
            DeployError: the image or the model has another form than it must have, or the container would refuse the
                environment.
        """
        match = _IMAGE.fullmatch(self.image)
        if not match:
            raise DeployError(
                f"--image {self.image!r}: ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG or …/NAME@sha256:DIGEST "
                "is needed, because SageMaker pulls from ECR only."
            )
        try:
            Settings.from_environment(self.environment)
        except SettingsError as err:
            raise DeployError(f"The container would refuse to start: {err}") from err
        account, region, repository = match.groups()
        model = S3Path.parse(self.model, "--model")
        return {
            "ImageUri": self.image,
            "ImageRepositoryArn": f"arn:{partition}:ecr:{region}:{account}:repository/{repository}",
            "ModelBucket": model.bucket,
            "ModelKey": model.key,
            "Release": self.to_json(),
        }

    def template(self) -> str:
        """Returns the template with the release's environment; a parameter cannot hold variables of any name."""
        text = TEMPLATE.read_text(encoding="utf-8")
        lines = [f"          {name}: {json.dumps(value)}\n" for name, value in sorted(self.environment.items())]
        before, mark, after = text.partition(MARK)
        if not mark:
            raise DeployError(f"{TEMPLATE.name} lacks the line {MARK.strip()!r}; restore it.")
        return before + "".join(lines) + mark + after


def environment_of(texts: Iterable[str]) -> dict[str, str]:
    """Reads `NAME=VALUE` texts.

    Raises:
        DeployError: a text has another form, or names a variable that the template sets.
    """
    environment = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise DeployError(f"--set {text!r} must be NAME=VALUE.")
        if not (value.isascii() and value.isprintable()) or len(value) > 1024:
            raise DeployError(f"--set {name}: SageMaker takes at most 1024 printable ASCII characters.")
        if name in RESERVED:
            raise DeployError(f"--set {name}: the template sets it, from the endpoint's name and its own parameters.")
        environment[name] = value
    return environment
