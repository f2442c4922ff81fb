"""Pickles of a model directory, read without running anything that stands in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError
from trimodal.loading.machine import Global, Machine, NotPlain

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
    return _read(Machine(), data, path.name)


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
    return _read(_TorchMachine(), data, path.name)


def _read(machine: Machine, data: bytes, name: str) -> object:
    try:
        return machine.run(data)
    except NotPlain as err:
        raise ArtifactError(f"{name} cannot be read: {err}; save it as JSON.") from err
    except Exception as err:  # a damaged pickle can raise anything
        raise ArtifactError(f"{name} is damaged; save it again, preferably as JSON.") from err


_DTYPES = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"})


class _Placeholder:
    """Stands in for a tensor, and for what one is made of."""


class _TorchMachine(Machine):
    """Builds plain values; puts a placeholder where a tensor stands."""

    def find(self, module: str, name: str) -> Any:
        """Returns what stands in for a name."""
        if module == "torch" and name in _DTYPES:
            return name
        version_or_size = (module, name) in (("torch.torch_version", "TorchVersion"), ("torch", "Size"))
        tensor = name.endswith("Storage") or name.startswith("_rebuild_") or name == "device"
        if version_or_size or (module.startswith("torch") and tensor):
            return Global("torch", name)
        return super().find(module, name)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns what the call of a name would give."""
        if isinstance(function, Global) and function.module == "torch":
            plain = function.name in ("TorchVersion", "Size") and len(arguments) == 1
            return arguments[0] if plain else _Placeholder()
        return super().call(function, arguments)

    def change(self, target: Any, state: Any) -> None:
        """Takes note of an object's state; that of a tensor or a version is of no interest."""
        if not isinstance(target, _Placeholder | str):
            super().change(target, state)

    def outside(self) -> Any:
        """Returns a placeholder: the tensors' numbers stand outside of the pickle."""
        return _Placeholder()
