"""What the container can take of its clients."""

from __future__ import annotations

from trimodal.settings import MIB, Settings

KEEP_ALIVE_SECONDS = 75
"""How long a connection is kept on which no request comes."""

GONE = 499
"""What the log says of a request whose client has gone before its answer (nginx's number)."""

_TRANSFORM_MB = 100
"""Most that Batch Transform has under way: MaxConcurrentTransforms × MaxPayloadInMB (CreateTransformJob's limit)."""


def execution_parameters(settings: Settings, concurrency: int) -> dict[str, object]:
    """Returns the answer to `/execution-parameters`.

    Args:
        settings: the container's settings.
        concurrency: requests that are computed at once.
    """
    payload = settings.max_payload // MIB
    transforms = max(1, min(concurrency, _TRANSFORM_MB))
    return {
        "MaxConcurrentTransforms": transforms,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": max(1, min(payload, _TRANSFORM_MB // transforms)),
    }
