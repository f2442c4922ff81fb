"""What SageMaker asks for when it wants a model loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from trimodal.errors import MalformedBody

_NAME = re.compile(r"[!-~]{1,256}")
_PATH = re.compile(r"/[^\0-\x1f\x7f\ud800-\udfff]{0,4095}")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One model to load.

    Attributes:
        name: of the model, from now on.
        path: its directory, absolute; it need not be there.
    """

    name: str
    path: Path


def parse_load_request(body: bytes) -> LoadRequest:
    """Reads the body of `POST /models`: `{"model_name": "…", "url": "/opt/ml/models/…/model"}`.

    Raises:
        MalformedBody: it is not that.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise MalformedBody("The body is not valid JSON.") from err
    if not isinstance(values, dict):
        raise MalformedBody("The body must be a JSON object with model_name and url.")
    name, url = values.get("model_name"), values.get("url")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MalformedBody("model_name must be a text of 1 to 256 ASCII characters without blanks.")
    if not isinstance(url, str) or not _PATH.fullmatch(url):
        raise MalformedBody("url must be the absolute path of the model directory.")
    return LoadRequest(name, Path(url))
