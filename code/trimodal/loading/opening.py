"""Opens a built model: its graphs to a runner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from trimodal.loading.built import Built, TextPart
from trimodal.loading.gpu import BoundSession
from trimodal.loading.plan import CUDA, TENSORRT
from trimodal.loading.sessions import Tuning, open_graph
from trimodal.serving.memory import EncoderCache
from trimodal.serving.runner import Runner, Session, TextInput
from trimodal.serving.split import Head, SplitRunner, TextEncoder

AnyRunner = Runner | SplitRunner


def open_built(built: Built, folder: Path, tuning: Tuning, *, pad_id: int = 0, cache_entries: int = 0) -> AnyRunner:
    """Opens a built model.

    Args:
        built: what the directory holds.
        folder: the directory.
        tuning: how to run the graphs.
        pad_id: token id that fills up a text.
        cache_entries: texts whose encoder outputs are remembered.

    Raises:
        OptimizationError: a graph cannot be opened, or not as asked.
    """
    if not built.texts:
        session = _open(built, folder / built.whole, tuning)
        return Runner(session, built.layout, pad_id)
    asked = [(part.file, tuning) for part in built.texts]
    if tuning.crowded and built.packed:
        asked += [(part.file, replace(tuning, threads=1, inter_op=1)) for part in built.texts]
    asked.append((built.head, replace(tuning, pack_into=None)))
    with ThreadPoolExecutor(len(asked)) as pool:
        *sessions, head = pool.map(lambda one: _open(built, folder / one[0], one[1]), asked)
    texts = (built.layout.primary, built.layout.secondary)
    encoders = [
        _encoder(session, part, text) for session, part, text in zip(sessions, built.texts * 2, texts * 2, strict=False)
    ]
    return SplitRunner(
        encoders=(encoders[0], encoders[1]),
        head=Head(
            session=head,
            output=built.layout.output,
            tabular=built.layout.tabular,
            shapes=tuple((side, texts[side], name) for side, name in built.head_shapes),
        ),
        cache=EncoderCache(cache_entries),
        # Each encoder may use every thread: where one text is short, the other's encoder soon has all of them.
        pool=ThreadPoolExecutor(2, thread_name_prefix="encoder") if tuning.threads > 1 else None,
        pad_id=pad_id,
        crowded=(encoders[2], encoders[3]) if len(encoders) > 2 else None,
    )


def _open(built: Built, path: Path, tuning: Tuning) -> Session:
    # The head is small, and OpenVINO wants to know more of its shapes than a cut tells.
    if built.engine == "openvino" and path.name != built.head:
        from trimodal.loading.openvino import open_openvino

        return open_openvino(path, precision=built.precision, threads=tuning.threads, cache_dir=tuning.cache_dir)
    options = tuning.options(path.stem, packed=built.packed and path.name != built.head)
    session = open_graph(path, options, built.providers, tuning.cache_dir, built.profile)
    opened: Session = BoundSession(session) if built.providers[0] in (CUDA, TENSORRT) else session
    return opened


def _encoder(session: Session, part: TextPart, text: TextInput) -> TextEncoder:
    inputs = TextInput(
        ids=part.ids,
        mask=part.mask,
        dtype=np.dtype(np.int64) if part.by_chunk else text.dtype,
        chunked=text.chunked,
        tokens=None if part.by_chunk else text.tokens,
    )
    return TextEncoder(session, inputs, part.outputs, part.by_chunk, bucket=part.bucket)
