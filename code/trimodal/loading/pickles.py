"""Pickles of a model directory, read without running anything that stands in them.

A pickle is a program; these readers know plain containers, numbers, strings and numpy scalars, and refuse the rest.
"""

from __future__ import annotations

import builtins
import collections
import functools
import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimodal.errors import ArtifactError

_SCALAR_KINDS = frozenset("biufUS")


def load_pickle(path: Path) -> object:
    """Reads a pickle of plain values.

    Raises:
        ArtifactError: the file cannot be read, or would build something that is not plain.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ArtifactError(f"{path.name} is not readable; check its permissions.") from err
    return _read(_PlainUnpickler, data, path.name)


def load_torch_config(path: Path) -> dict[str, Any]:
    """Reads the `config` dict of a file written by `torch.save`, without torch; tensors are left out.

    Raises:
        ArtifactError: the file is not such a file, or would build something else than plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            data = archive.read(name)
    except (zipfile.BadZipFile, StopIteration, OSError, RuntimeError, ValueError) as err:
        raise ArtifactError(f"{path.name} is not a file written by torch.save; save it again.") from err
    content = _read(_TorchUnpickler, data, path.name)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path.name} holds no “config” dict; save it with torch.save({{'config': …}}, …).")
    return config


class _NotPlain(Exception):
    """A pickle that would build something else than plain values."""


def _read(unpickler: type[_PlainUnpickler], data: bytes, name: str) -> object:
    try:
        _check_memo(data)
        return unpickler(io.BytesIO(data)).load()
    except _NotPlain as err:
        raise ArtifactError(f"{name} cannot be read: {err}; save it as JSON.") from err
    except Exception as err:  # a damaged pickle can raise anything
        raise ArtifactError(f"{name} is damaged; save it again, preferably as JSON.") from err


def _check_memo(data: bytes) -> None:
    """Refuses places in the memo beyond the file's size, for which the unpickler would reserve memory.

    Raises:
        ValueError: there is one, or the pickle is cut short.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError("memo index")


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain containers, numbers, strings and numpy scalars.

    What stands in for a function or a class is made anew at each look-up: a pickle can set attributes on it.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "builtins" | "__builtin__", "set" | "frozenset":
                return getattr(builtins, name)
            case "builtins" | "__builtin__", "bytes":  # how protocols 0 to 2 write empty bytes
                return functools.partial(_no_bytes)
            case "numpy", "dtype":
                return type("Dtype", (_Dtype,), {})
            case "numpy._core.multiarray" | "numpy.core.multiarray", "scalar":  # numpy 2, numpy 1
                return functools.partial(_scalar)
            case "_codecs", "encode":  # how protocols 0 to 2 write bytes
                return functools.partial(_latin1)
        raise _NotPlain(f"it would build {module}.{name}, and only plain values are allowed")


class _TorchUnpickler(_PlainUnpickler):
    """Builds plain values; puts a placeholder where a tensor stands."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch.torch_version", "TorchVersion":
                return type("Version", (str,), {})
            case "torch", "Size":
                return tuple
            case "torch", _ if name in _TORCH_DTYPES:
                return name
        if module.startswith("torch") and (
            name.endswith("Storage") or name.startswith("_rebuild_") or name == "device"
        ):
            return type("Placeholder", (_Placeholder,), {})
        return super().find_class(module, name)

    def persistent_load(self, _pid: Any) -> object:
        return _Placeholder()


_TORCH_DTYPES = frozenset(
    {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"}
)


class _Placeholder:
    """Stands in for a tensor and for what builds one."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _Dtype:
    """Stands in for `numpy.dtype`, whose own unpickling trusts its input."""

    def __init__(self, code: str, *_flags: object) -> None:
        self.code = str(code)
        self.order: Literal["=", "<", ">"] = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = "<" if state[1] == "<" else ">"


def _scalar(dtype: _Dtype, data: bytes = b"") -> object:
    """Returns the Python value of a pickled numpy scalar."""
    real = np.dtype(dtype.code).newbyteorder(dtype.order)
    if real.kind not in _SCALAR_KINDS or real.itemsize != len(data):
        raise _NotPlain("it holds a numpy value that is neither a number nor a string")
    return np.frombuffer(data, dtype=real)[0].item()


def _no_bytes() -> bytes:
    return b""


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _NotPlain("it holds bytes in an unusual encoding")
    return text.encode("latin-1")
