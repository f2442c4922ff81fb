"""The four handler functions of SageMaker's contract: ours, or those of a user's `code/inference.py`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import inference
from trimodal.errors import ArtifactError

Handler = Callable[..., Any]

NAMES = ("model_fn", "input_fn", "predict_fn", "output_fn")


@dataclass(frozen=True, slots=True)
class Handlers:
    """The functions that answer requests.

    Attributes:
        model_fn: model directory → model.
        input_fn: body, content type → data.
        predict_fn: data, model → prediction.
        output_fn: prediction, accept → body, or body and content type.
        transform_fn: model, body, content type, accept → body, or body and content type; in the place of the last
            three, or None.
        pre_model_fn: called with the model directory before `model_fn`, or None.
        model_warmup_fn: called with the model directory and the model after `model_fn`, or None.
        own_input: the body goes to a user's function, which the contract gives JSON and CSV as text.
        own_output: a user's function writes the answer, in whatever media type it likes.
    """

    model_fn: Handler
    input_fn: Handler
    predict_fn: Handler
    output_fn: Handler
    transform_fn: Handler | None = None
    pre_model_fn: Handler | None = None
    model_warmup_fn: Handler | None = None
    own_input: bool = False
    own_output: bool = False


def find_handlers(model_dir: Path, program: str) -> Handlers:
    """Returns our handlers, each replaced by that of the user's module where it defines one.

    Args:
        model_dir: the model directory; a user's module lies in its `code/`.
        program: the module's file name.

    Raises:
        ArtifactError: the user's module cannot be imported, or defines `transform_fn` beside what it replaces.
    """
    path = model_dir / "code" / (program if program.endswith(".py") else f"{program}.py")
    if not path.is_file():
        return Handlers(*(getattr(inference, name) for name in NAMES))
    module = _import(path)
    transform = getattr(module, "transform_fn", None)
    if transform is not None and any(hasattr(module, name) for name in NAMES[1:]):
        raise ArtifactError(f"code/{path.name}: define either transform_fn or input_fn, predict_fn and output_fn.")
    model_fn, input_fn, predict_fn, output_fn = (getattr(module, name, getattr(inference, name)) for name in NAMES)
    return Handlers(
        model_fn,
        input_fn,
        predict_fn,
        output_fn,
        transform,
        getattr(module, "pre_model_fn", None),
        getattr(module, "model_warmup_fn", None),
        own_input=transform is not None or hasattr(module, "input_fn"),
        own_output=transform is not None or hasattr(module, "output_fn"),
    )


def _import(path: Path) -> ModuleType:
    """Imports a user's module under a name of its own; its directory comes first on the path, for its helpers."""
    spec = importlib.util.spec_from_file_location("user_inference", path)
    if spec is None or spec.loader is None:
        raise ArtifactError(f"code/{path.name} is not a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise ArtifactError(f"code/{path.name} cannot be imported: {type(err).__name__}: {err}") from err
    return module


def call(function: Handler, *arguments: object, context: object) -> Any:
    """Calls a handler, with the context as last argument when it takes one more parameter.

    Raises:
        TypeError: the handler takes another number of parameters.
    """
    count = len(inspect.signature(function).parameters)
    if count == len(arguments) + 1:
        return function(*arguments, context)
    return function(*arguments)
