"""Texts to token ids: the processing steps that the model was trained with, oddities included.

The steps reproduce the preprocessing of the training pipeline, because a score depends on each of them:
only what stands between `[bom]` and `[eom]` is read, the emoji step also removes Chinese, Japanese and Korean
characters, and full chunks lose up to two tokens to `[CLS]` and `[SEP]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from trimodal.records import EncodedText
from trimodal.serving.markup import TextError, normalize_html

PLACEHOLDER = "."
"""The one chunk of a text in which nothing is left to read."""

_BEGIN, _END = "[bom]", "[eom]"
_SPACES = re.compile(r"\s+")
_EMOJI = re.compile(
    "["
    "\U0001f600-\U0001f64f"  # emoticons
    "\U0001f300-\U0001f5ff"  # symbols and pictographs
    "\U0001f680-\U0001f6ff"  # transport and map symbols
    "\U0001f1e0-\U0001f1ff"  # flags
    "\u2702-\u27b0"  # dingbats
    "\u24c2-\U0001f251"  # enclosed characters, and with them every CJK character
    "]+"
)
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""`PreTrainedTokenizerBase.clean_up_tokenization` of transformers, in its order."""


@dataclass(slots=True)
class _Counts:
    cut_messages: int = 0
    dropped_chunks: int = 0


def marked_messages(text: str) -> Iterator[str]:
    """Yields what stands between each `[bom]` and the next `[eom]`, in one pass whatever the text."""
    end = 0
    while (begin := text.find(_BEGIN, end)) >= 0:
        begin += len(_BEGIN)
        if (stop := text.find(_END, begin)) < 0:
            return
        yield text[begin:stop]
        end = stop + len(_END)


def remove_emoji(message: str) -> str:
    """Removes emoji, and every other character of the ranges that the training removed."""
    return _EMOJI.sub("", message)


def normalize_text(message: str) -> str:
    """Strips, lowers the case and folds runs of white space into one space."""
    return _SPACES.sub(" ", message.strip().lower())


def clean_up_tokenization(text: str) -> str:
    """Removes the spaces that decoding puts before punctuation and contractions."""
    for spaced, joined in _CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """The processing steps of one text field, made ready once.

    Attributes:
        tokenizer: the fast tokenizer; its own padding and truncation must be off.
        steps: names of the steps in their order, as in `hyperparameters.json`.
        max_tokens: tokens of a chunk, `[CLS]` and `[SEP]` included.
        max_chunks: chunks of a text; None keeps all of them.
        read_unmarked: read a text without `[bom]…[eom]` as one message instead of as a placeholder.
    """

    tokenizer: Tokenizer
    steps: Sequence[str]
    max_tokens: int
    max_chunks: int | None
    read_unmarked: bool = False

    def encode(self, text: str) -> EncodedText:
        """Turns one text into token ids.

        Args:
            text: the field's value, with its `[bom]…[eom]` markers; may be empty.

        Raises:
            TextError: a step cannot read the text.
        """
        counts = _Counts()
        known: dict[str, Encoding] = {}
        unmarked = False
        messages = [text]
        for step in self.steps:
            if step == "dialogue_splitter":
                messages, unmarked = self._split(text)
            elif step == "dialogue_chunker":
                messages = self._chunk(messages, counts, known)
            elif step != "tokenizer":
                messages = [MESSAGE_STEPS[step](message) for message in messages]
        chunks = [chunk for chunk in messages if chunk.strip()] or [PLACEHOLDER]
        ids = [self._finished(encoding) for encoding in self._encode(chunks, known)]
        return EncodedText(ids, unmarked, counts.cut_messages, counts.dropped_chunks)

    def _split(self, text: str) -> tuple[list[str], bool]:
        """Returns the messages between the markers, and whether there were none."""
        marked = list(marked_messages(text))
        if marked:
            return [message for inner in marked if (message := inner.strip())], False
        if self.read_unmarked and text.strip():
            return [text.strip()], True
        return [], True

    def _chunk(self, messages: list[str], counts: _Counts, known: dict[str, Encoding]) -> list[str]:
        """Joins messages into chunks of at most `max_tokens` tokens, special tokens not counted."""
        chunks: list[str] = []
        current: list[str] = []
        size = 0
        for whole, encoding in zip(messages, self._encode(messages, known), strict=True):
            message, length = whole, len(encoding)
            if length > self.max_tokens:
                counts.cut_messages += 1
                message = self._decode(encoding.ids[: self.max_tokens])
                length = len(self._encode([message], known)[0])
            if current and size + length > self.max_tokens:
                chunks.append(" ".join(current))
                current, size = [], 0
            current.append(message)
            size += length
        if current:
            chunks.append(" ".join(current))
        if self.max_chunks is not None and len(chunks) > self.max_chunks:
            counts.dropped_chunks = len(chunks) - self.max_chunks
            del chunks[self.max_chunks :]
        return chunks

    def _decode(self, ids: list[int]) -> str:
        return clean_up_tokenization(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, texts: list[str], known: dict[str, Encoding]) -> list[Encoding]:
        """Tokenizes texts without special tokens, those that are not known; adds them to what is known.

        In batches because only those release Python's lock: a long text must not hold up other requests.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        try:
            found = self.tokenizer.encode_batch_fast(missing, add_special_tokens=False) if missing else []
        except (TypeError, UnicodeEncodeError) as err:
            raise TextError("holds characters that are not Unicode text") from err
        known.update(zip(missing, found, strict=True))
        return [known[text] for text in texts]

    def _finished(self, encoding: Encoding) -> list[int]:
        """Returns the ids of a chunk with `[CLS]` and `[SEP]`, cut to `max_tokens`."""
        encoding.truncate(self.max_tokens - self.tokenizer.num_special_tokens_to_add(is_pair=False))
        ids: list[int] = self.tokenizer.post_process(encoding).ids
        return ids


MESSAGE_STEPS: dict[str, Callable[[str], str]] = {
    "html_normalizer": normalize_html,
    "emoji_remover": remove_emoji,
    "text_normalizer": normalize_text,
}
"""Steps that change each message on its own."""

STEPS = frozenset({"dialogue_splitter", *MESSAGE_STEPS, "dialogue_chunker", "tokenizer"})
"""Every step that a model directory may name."""
