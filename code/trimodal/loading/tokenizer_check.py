"""Looks at a tokenizer.json before it is loaded: a few steps that double a text, or a pattern, take for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimodal.errors import ArtifactError

KNOWN = frozenset(
    {
        "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents", "Prepend",
        "BertPreTokenizer", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts",
        "Whitespace", "WhitespaceSplit", "BPEDecoder", "ByteFallback", "Fuse", "WordPiece", "ByteLevel", "Replace",
        "Sequence",
    }
)  # fmt: skip
"""Steps whose time and result grow with the text alone; of `Replace`, `Split` and `Prepend` only the plain ones do."""

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_MOST_STEPS = 100
_LONGEST_WORD = 200
"""Most `max_input_chars_per_word`: WordPiece tries every part of a word."""


def check_tokenizer(document: object, name: str) -> None:
    """Checks the parts of a tokenizer.json that work on texts.

    Args:
        document: the file, parsed.
        name: of the file.

    Raises:
        ArtifactError: a part is unknown, or would take more time or memory than a text's length accounts for.
    """
    if not isinstance(document, Mapping):
        raise ArtifactError(f"{name} is not a readable tokenizer; save the fast tokenizer again.")
    steps = [step for part in _PARTS for step in _steps(document.get(part))]
    if len(steps) > _MOST_STEPS:
        raise ArtifactError(f"{name} has more than {_MOST_STEPS} steps; save the fast tokenizer again.")
    for step in steps:
        kind = step.get("type")
        if kind not in KNOWN:
            raise ArtifactError(
                f"{name} has the step {str(kind)[:80]!r}, which is not allowed; use a tokenizer of BERT."
            )
        if not _bounded(step):
            raise ArtifactError(f"{name}: a {kind} uses a pattern, or makes texts longer; use a tokenizer of BERT.")
    model = document.get("model")
    longest = model.get("max_input_chars_per_word") if isinstance(model, Mapping) else None
    if isinstance(longest, int) and longest > _LONGEST_WORD:
        raise ArtifactError(f"{name}: max_input_chars_per_word is over {_LONGEST_WORD}; BERT has 100.")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a part, those of sequences too."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step[: _MOST_STEPS + 1]
        elif isinstance(step, Mapping):
            yield step
            waiting += [step.get(key) for key in ("normalizers", "pretokenizers", "decoders")]


def _bounded(step: Mapping[str, Any]) -> bool:
    """Tells whether a step looks for plain signs, and puts no more in their place than there was."""
    pattern = step.get("pattern")
    sign = pattern.get("String") if isinstance(pattern, Mapping) else pattern
    if step.get("type") == "Split":
        return isinstance(sign, str)
    if step.get("type") == "Replace":
        content = step.get("content")
        return isinstance(sign, str) and isinstance(content, str) and len(sign) > 0 and len(content) <= len(sign)
    return len(str(step.get("prepend", ""))) <= 1
