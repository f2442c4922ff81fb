"""Pickles of a model directory, read without running anything that stands in them.

A pickle is a program; these readers know plain containers, numbers, strings and numpy scalars, and refuse the rest.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from trimodal.errors import ArtifactError
from trimodal.loading.pickle_checks import MOST_VALUES, NotPlain, check_key, check_program, check_value

_DATA_BYTES = 64 * 1024 * 1024
"""Most bytes of the pickle within a torch file, which may be packed."""


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
    content = read_torch(path)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path.name} holds no “config” dict; save it with torch.save({{'config': …}}, …).")
    return config


def read_torch(path: Path) -> object:
    """Reads a file written by `torch.save`, with placeholders where tensors stand.

    Raises:
        ArtifactError: the file is not such a file, or would build something else than plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                data = file.read(_DATA_BYTES + 1)
    except Exception as err:  # a damaged archive can raise anything
        raise ArtifactError(f"{path.name} is not a file written by torch.save; save it again.") from err
    if len(data) > _DATA_BYTES:
        raise ArtifactError(
            f"{path.name} holds more than {_DATA_BYTES} bytes beside its tensors; save it without them."
        )
    return _read(_TorchUnpickler, data, path.name)


def _read(unpickler: type[_PlainUnpickler], data: bytes, name: str) -> object:
    try:
        check_program(data)
        value = unpickler(io.BytesIO(data)).load()
        check_value(value, _Placeholder)
    except NotPlain as err:
        raise ArtifactError(f"{name} cannot be read: {err}; save it as JSON.") from err
    except Exception as err:  # a damaged pickle can raise anything
        raise ArtifactError(f"{name} is damaged; save it again, preferably as JSON.") from err
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain containers, numbers, strings and numpy scalars.

    What stands in for a function or a class is made anew at each look-up: a pickle can set attributes on it.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._left = MOST_VALUES

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return functools.partial(self._make, _ordered)
            case "builtins" | "__builtin__", "set" | "frozenset":
                return functools.partial(self._make, _set)
            case "builtins" | "__builtin__", "bytes":  # how protocols 0 to 2 write empty bytes
                return functools.partial(self._make, _no_bytes)
            case "numpy", "dtype":
                return type("Dtype", (_Dtype,), {})
            case "numpy._core.multiarray" | "numpy.core.multiarray", "scalar":  # numpy 2, numpy 1
                return functools.partial(self._make, _scalar)
            case "_codecs", "encode":  # how protocols 0 to 2 write bytes
                return functools.partial(self._make, _latin1)
        raise NotPlain(f"it would build {module[:80]}.{name[:80]}, and only plain values are allowed")

    def _make(self, function: Callable[..., object], *arguments: object) -> object:
        """Calls what copies its arguments, unless it has copied too much: they may be the same again and again."""
        self._left -= sum(len(argument) for argument in arguments if isinstance(argument, Sized))
        if self._left < 0:
            raise NotPlain(f"it holds more than {MOST_VALUES} values")
        return function(*arguments)


class _TorchUnpickler(_PlainUnpickler):
    """Builds plain values; puts a placeholder where a tensor stands."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch.torch_version", "TorchVersion":
                return type("Version", (_Version,), {})
            case "torch", _ if name in _TORCH_DTYPES:
                return name
        if module.startswith("torch") and (
            name.endswith("Storage") or name.startswith("_rebuild_") or name in ("device", "Size")
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


class _Version(str):
    """Stands in for a version, which is a text."""

    __slots__ = ()

    def __new__(cls, text: object) -> Self:
        if not isinstance(text, str):  # the text of a list may be endless
            raise TypeError("a version that is no text")
        return super().__new__(cls, text)


class _Dtype:
    """Stands in for `numpy.dtype`, whose own unpickling trusts its input."""

    def __init__(self, code: object, *_flags: object) -> None:
        self.code = code if isinstance(code, str) else ""
        self.order: Literal["=", "<", ">"] = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = "<" if state[1] == "<" else ">"


_SCALAR = re.compile(r"\?|[biuf]\d|[SU]\d{1,4}", re.ASCII)


def _scalar(dtype: _Dtype, data: object = b"") -> object:
    """Returns the Python value of a pickled numpy scalar."""
    if not isinstance(data, bytes) or _SCALAR.fullmatch(dtype.code) is None:
        raise NotPlain("it holds a numpy value that is neither a number nor a string")
    real = np.dtype(dtype.code).newbyteorder(dtype.order)
    if real.itemsize != len(data):
        raise NotPlain("it holds a numpy value of another size than its type's")
    return np.frombuffer(data, dtype=real)[0].item()


def _set(items: list[Any]) -> set[Any]:
    return set(map(check_key, items))


def _ordered(pairs: list[Any] | None = None) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict((check_key(key), value) for key, value in pairs or [])


def _no_bytes() -> bytes:
    return b""


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise NotPlain("it holds bytes in an unusual encoding")
    return text.encode("latin-1")
