"""The last level: `model.pth` served by PyTorch, and the way up from there, its export to ONNX."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimodal.errors import ArtifactError, TrimodalError
from trimodal.loading.artifacts import Artifacts, read_artifacts
from trimodal.loading.files import read_json
from trimodal.loading.weights import check_weights
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput

if TYPE_CHECKING:
    from trimodal.network import TorchSession, TrimodalNetwork


def load_pytorch(artifacts: Artifacts, threads: int) -> tuple[TorchSession, GraphLayout]:
    """Loads `model.pth`.

    Args:
        artifacts: the model directory.
        threads: threads of one operator.

    Raises:
        ArtifactError: torch is missing, or the files do not make a network.
    """
    network = _network(artifacts)
    from trimodal.network import TorchSession

    schema = artifacts.schema

    def text(name: str) -> TextInput:
        return TextInput(f"{name}_input_ids", f"{name}_attention_mask", np.int64)

    layout = GraphLayout(
        primary=text(schema.primary),
        secondary=text(schema.secondary),
        tabular=tuple(TabularInput(name, np.float32, (index,)) for index, name in enumerate(schema.tabular)),
        output="probs",
        rows=1,  # torch rounds a row of several otherwise than a row alone
    )
    return TorchSession(network, (schema.primary, schema.secondary), schema.tabular, threads), layout


def _network(artifacts: Artifacts) -> TrimodalNetwork:
    """Builds the network of a model directory."""
    check_weights(artifacts.state_dict)
    primary, secondary = read_bert_configs(artifacts.model_dir)
    try:
        from trimodal.network import NetworkError, load_network
    except ImportError as err:
        raise ArtifactError(
            "model.pth needs torch and transformers, which this image lacks; use the full image or add model.onnx."
        ) from err
    try:
        network = load_network(artifacts.state_dict, primary, secondary)
    except NetworkError as err:
        raise ArtifactError(f"model.pth: {str(err).splitlines()[0]}") from err
    if network.config.fields != len(artifacts.schema.tabular):
        raise ArtifactError(
            f"model.pth takes {network.config.fields} tabular fields and hyperparameters.json lists "
            f"{len(artifacts.schema.tabular)} in tab_field_list; make them the same."
        )
    return network


def read_bert_configs(model_dir: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Reads the BERT configurations of the primary and the secondary text; the weights do not tell the heads.

    Raises:
        ArtifactError: there is none.
    """
    for path in (model_dir / "config.json", model_dir / "tokenizer" / "config.json"):
        if not path.is_file():
            continue
        config = read_json(path)
        if isinstance(config, dict) and "num_attention_heads" in config:
            return config, config
    raise ArtifactError("model.pth needs the BERT config.json beside it, which tells the attention heads; add it.")


def export_model(model_dir: Path, out: Path, *, opset: int = 17) -> float:
    """Writes the ONNX file of a directory's `model.pth`; a failure leaves nothing behind.

    Args:
        model_dir: the model directory.
        out: the file to write.
        opset: version of the ONNX operators.

    Returns:
        The largest difference of a probability from PyTorch.

    Raises:
        ArtifactError: the network cannot be built, written, or does not give the same scores.
    """
    artifacts = read_artifacts(model_dir)
    if not artifacts.has_state_dict:
        raise ArtifactError("model.pth is missing from the model directory; there is nothing to export.")
    network = _network(artifacts)
    from trimodal.network import export_onnx

    schema = artifacts.schema
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            draft = Path(folder) / out.name
            difference = export_onnx(network, (schema.primary, schema.secondary), schema.tabular, draft, opset=opset)
            os.replace(draft, out)  # noqa: PTH105  over an existing file
    except (TrimodalError, OSError) as err:
        reason = err.strerror if isinstance(err, OSError) else err
        raise ArtifactError(f"The model cannot be exported: {reason}") from err
    return difference
