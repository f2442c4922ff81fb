from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from trimodal.errors import OptimizationError
from trimodal.loading.passes.calibrate import MOST_TEXTS, calibrate
from trimodal.loading.passes.quantize import int8_product
from trimodal.loading.passes.rebuild import IDS, position_table, rebuild_encoder

pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_networks import HIDDEN, INNER, TOKENS, original, random_ids, session, text_feed


def texts(count):
    return [random_ids(seed, 1, 3 + seed % 20)[0].tolist() for seed in range(count)]


def ranges(export, chunks):
    encoder = export.encoder(0)
    return calibrate(export.view, encoder, position_table(export.view, encoder, TOKENS), chunks, threads=1)


def test_every_product_gets_the_range_that_the_network_shows(plain):
    chunks = texts(4)
    found = ranges(plain, chunks)
    first, last = plain.encoder(0).layers
    names = {
        "layer0/query_key_value": first.query.source,
        "layer0/output": first.output.source,
        "layer0/inner": first.inner.source,
        "layer0/outer": first.outer.source,
        "layer1/key_value": last.key.source,
    }
    runner = original(plain.view, *names.values())
    seen = [runner.run(list(names.values()), text_feed(np.array([chunk]))) for chunk in chunks]

    assert found.keys() == names.keys() | {f"layer1/{part}" for part in ("first_query", "output", "inner", "outer")}
    for place, name in enumerate(names):
        values = np.concatenate([value[place].reshape(-1, value[place].shape[-1]) for value in seen])
        np.testing.assert_allclose(found[name].low, values.min(axis=0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[name].high, values.max(axis=0), rtol=0, atol=1e-5)
    assert found["layer0/outer"].high.shape == (INNER,)


def test_texts_are_picked_evenly_and_not_all(plain):
    many = texts(3 * MOST_TEXTS)
    few = [many[round(place)] for place in np.linspace(0, len(many) - 1, MOST_TEXTS)]
    found, expected = ranges(plain, many), ranges(plain, few)
    for name, seen in expected.items():
        np.testing.assert_array_equal(found[name].low, seen.low)
        np.testing.assert_array_equal(found[name].high, seen.high)


@pytest.mark.parametrize("static", [True, False])
def test_an_encoder_in_int8_is_close_to_the_network(plain, tmp_path, static):
    encoder = plain.encoder(0)
    positions = position_table(plain.view, encoder, TOKENS)
    product = int8_product(ranges(plain, texts(20)), static=static, reduced=True)
    rebuild_encoder(plain.view, encoder, positions, tmp_path / "encoder.onnx", product)
    ids = random_ids(100, 4, 12)

    (expected,) = original(plain.view, encoder.pooled).run([encoder.pooled], text_feed(ids))
    (given,) = session(tmp_path / "encoder.onnx").run([encoder.pooled], {IDS: ids})

    assert given.shape == (4, HIDDEN)
    assert np.corrcoef(given.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("chunks", [[], [[1] * (TOKENS + 1)]], ids=["none", "too long"])
def test_texts_that_cannot_be_run_raise_and_leave_nothing(plain, chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OptimizationError, match="calibrat"):
        ranges(plain, chunks)
    assert list(Path(tmp_path).iterdir()) == []
