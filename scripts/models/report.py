"""Writes the README of a model directory."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from training import Labels, Quality

_TITLES = {
    "demo": "a small trimodal classifier, trained on synthetic return and refund cases",
    "minilm": "a trimodal classifier on two MiniLM encoders; poolers, table and heads are trained",
    "bert-base": "a trimodal classifier on two BERT-base encoders with random weights",
}
_PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Ablation:
    """Quality on the test cases without one modality.

    Attributes:
        name: the modality.
        neutralised: the same model, the modality replaced by its empty value.
        retrained: a model that was trained and tested without the modality, or None.
    """

    name: str
    neutralised: Quality
    retrained: Quality | None


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say of a model.

    Attributes:
        kind: the kind of model.
        options: options of the command that made it, the seed among them.
        cases: numbers of training, validation and test cases.
        labels: labels of the test cases.
        whole: quality on the test cases, or None for random weights.
        ablations: quality without each modality.
    """

    kind: str
    options: str
    cases: tuple[int, int, int]
    labels: Labels
    whole: Quality | None = None
    ablations: tuple[Ablation, ...] = ()

    def text(self, path: Path) -> str:
        """The README."""
        command = f"python scripts/models/make_model.py {self.kind} --out DIR {self.options}"
        versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        parts = [
            f"# {self.kind}: {_TITLES[self.kind]}",
            "Made by\n\n```\n" + command + "\n```",
            f"with {versions}.",
            *self.quality(),
            f"## Files\n\n{_files(path)}",
            _NOTES,
        ]
        return "\n\n".join(parts) + "\n"

    def quality(self) -> list[str]:
        """The sections on quality."""
        if self.whole is None:
            return ["The weights are random: measure latency with it, not accuracy."]
        train, valid, test = self.cases
        share = 100 * float(self.labels.mean())
        drawn = (
            f"{train} cases to train, {valid} to choose the best epoch and to make the percentile "
            f"table, {test} to test ({share:.0f} % with label 1). The figures are those of "
            "`model.onnx` in ONNX Runtime on the test cases, which nothing else was chosen by; "
            "F1 (of class 1) and accuracy at the threshold 0.5. The cases are synthetic: the "
            "figures say that the model reads all three modalities, not how it would do in a shop."
        )
        return ["## Held-out quality", drawn, self.table()]

    def table(self) -> str:
        """The table of AUC, F1 and accuracy, with and without each modality."""
        lines = ["| model | AUC | F1 | accuracy |", "|---|---|---|---|"]
        rows = [("all three modalities", self.whole)]
        for ablation in self.ablations:
            rows.append((f"{ablation.name} neutralised at evaluation", ablation.neutralised))
            rows.append((f"retrained without the {ablation.name}", ablation.retrained))
        lines += [f"| {name} | {q.auc:.3f} | {q.f1:.3f} | {q.accuracy:.3f} |" for name, q in rows if q]
        neutral = "Neutralised: an empty text (the placeholder chunk), or the imputed numbers."
        return "\n".join(lines) + f"\n\n{neutral}"


def _files(path: Path) -> str:
    """A table of the files and their sizes."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "README.md")
    lines = ["| file | KB |", "|---|---|"]
    lines += [f"| `{f.relative_to(path)}` | {f.stat().st_size / 1000:.1f} |" for f in files]
    return "\n".join(lines)


_NOTES = """`golden.jsonl` holds test cases with the probabilities that `model.onnx` gave to each of them
alone, and their labels. `config.json` is the configuration of both BERT encoders, which
`model.pth` is loaded with. `hyperparameters.json` sets `"request_envelope": "instances"`, so that
requests of the form `{"instances": […]}` are taken too."""
