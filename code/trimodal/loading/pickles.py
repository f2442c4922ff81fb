"""Pickles of a model directory, read without running anything that stands in them.

A pickle is a program; these readers know plain containers, numbers, strings and numpy scalars, and refuse the rest.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from trimodal.errors import ArtifactError

_SCALAR_KINDS = frozenset("biufUS")


def load_pickle(path: Path) -> object:
    """Reads a pickle of plain values.

    Raises:
        ArtifactError: the file cannot be read, or would build something that is not plain.
    """
    with path.open("rb") as file:
        return _read(_PlainUnpickler(file), path)


def load_torch_config(path: Path) -> dict[str, Any]:
    """Reads the `config` dict of a file written by `torch.save`, without torch; tensors are left out.

    Raises:
        ArtifactError: the file is not such a file, or would build something else than plain values and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                content = _read(_TorchUnpickler(file), path)
    except (zipfile.BadZipFile, StopIteration, OSError, NotImplementedError) as err:
        raise ArtifactError(f"{path.name} is not a file written by torch.save; save it again.") from err
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path.name} holds no “config” dict; save it with torch.save({{'config': …}}, …).")
    return config


def _read(unpickler: pickle.Unpickler, path: Path) -> object:
    try:
        return unpickler.load()
    except pickle.UnpicklingError as err:
        raise ArtifactError(f"{path.name} cannot be read: {err}.") from err
    except Exception as err:  # a damaged pickle can raise anything
        raise ArtifactError(f"{path.name} is damaged; save it again, preferably as JSON.") from err


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain containers, numbers, strings and numpy scalars."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.allowed: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("numpy", "dtype"): _Dtype,
            ("numpy._core.multiarray", "scalar"): _scalar,  # numpy 2
            ("numpy.core.multiarray", "scalar"): _scalar,  # numpy 1
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it would build {module}.{name}, and only plain values are allowed; save it as JSON"
            ) from None


class _TorchUnpickler(_PlainUnpickler):
    """Builds plain values; puts a placeholder where a tensor stands."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.torch_version", "TorchVersion"):
            return _Version
        if module in ("torch", "torch.storage") and name.endswith(("Storage", "dtype")):
            return _Placeholder
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _Placeholder
        return super().find_class(module, name)

    def persistent_load(self, _pid: Any) -> object:
        return _Placeholder()


class _Version(str):
    """Stands in for `torch.torch_version.TorchVersion`, a str."""

    __slots__ = ()


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
        raise pickle.UnpicklingError("it holds a numpy value that is not a number or a string")
    return np.frombuffer(data, dtype=real)[0].item()
