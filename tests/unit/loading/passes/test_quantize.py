from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trimodal.loading.passes.quantize import Range, int4_product, int8_product
from trimodal.loading.passes.writer import GraphWriter

INPUTS, OUTPUTS = 96, 40
MATRIX = np.random.default_rng(1).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
SHIFT = np.random.default_rng(2).normal(size=OUTPUTS).astype(np.float32)
KINDS = [(static, reduced) for static in (True, False) for reduced in (True, False)]


def rows(count):
    """Inputs `[count, 5, K]`; every sixteenth channel is an outlier, as in a trained encoder."""
    values = np.random.default_rng(3).normal(size=(count, 5, INPUTS)).astype(np.float32)
    values[..., ::16] *= 20
    return values


SAMPLE = rows(8)
SEEN = Range(SAMPLE.min(axis=(0, 1)), SAMPLE.max(axis=(0, 1)))


def write(folder, product, matrix=MATRIX, shift=SHIFT):
    """Writes one product; returns the function that runs it, and its weights by name."""
    with GraphWriter(folder / "product.onnx") as writer:
        result = product(writer, "x", "layer0/inner", matrix, shift)
        writer.save(
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["R", "T", len(matrix)])],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        )
    model = onnx.load(folder / "product.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "product.onnx", providers=["CPUExecutionProvider"])
    tensors = {t.name.removeprefix("layer0/inner/"): numpy_helper.to_array(t) for t in model.graph.initializer}
    return lambda x: session.run(None, {"x": x})[0], tensors


@pytest.mark.parametrize(("static", "reduced"), KINDS)
def test_int8_weights_keep_their_bits_and_a_scale_for_each_output(tmp_path, static, reduced):
    _, tensors = write(tmp_path, int8_product({"layer0/inner": SEEN}, static=static, reduced=reduced))
    limit = 63 if reduced else 127
    weight = tensors["weight"]

    assert weight.dtype == np.int8
    assert (np.abs(weight.astype(int)).max(axis=0) == limit).all()  # each column uses its whole range
    assert tensors["weight_scale"].shape == (OUTPUTS,)
    assert not tensors["weight_zero"].any()
    restored = weight * tensors["weight_scale"] * tensors["smoothing"][:, None]
    error = np.abs(restored - MATRIX)
    assert (error <= 0.501 * tensors["weight_scale"] * tensors["smoothing"][:, None]).all()


@pytest.mark.parametrize(("static", "reduced"), KINDS)
def test_int8_products_are_close_to_fp32(tmp_path, static, reduced):
    run, tensors = write(tmp_path, int8_product({"layer0/inner": SEEN}, static=static, reduced=reduced))
    smoothed = SAMPLE * tensors["smoothing"]
    matrix = MATRIX / tensors["smoothing"][:, None]
    # Rounding moves an input by at most half a step (one, where the zero point is rounded too), a weight by half of
    # its own: |xw - x'w'| <= |x - x'| |w| + |x'| |w - w'|, summed over the inputs.
    step = (max(smoothed.max(), 0) - min(smoothed.min(), 0)) / 255
    bound = step * np.abs(matrix).sum(axis=0) + (np.abs(smoothed) + step).sum(-1)[..., None] * (
        tensors["weight_scale"] / 2
    )
    error = np.abs(run(SAMPLE) - (SAMPLE @ MATRIX + SHIFT))

    assert (error <= bound).all()
    assert error.mean() < 0.02 * np.abs(SAMPLE @ MATRIX).mean()


def test_a_row_of_static_int8_does_not_depend_on_the_other_rows_of_its_run(tmp_path):
    run, _ = write(tmp_path, int8_product({"layer0/inner": SEEN}, static=True, reduced=True))
    batch = rows(6)
    batch[3] *= 50  # far outside of the calibrated range

    together = run(batch)

    for place in range(6):
        np.testing.assert_array_equal(run(batch[place : place + 1])[0], together[place])


def test_a_row_of_dynamic_int8_does_depend_on_them(tmp_path):
    run, _ = write(tmp_path, int8_product({"layer0/inner": SEEN}, static=False, reduced=True))
    batch = rows(2)
    batch[1] *= 50
    assert np.abs(run(batch)[0] - run(batch[:1])[0]).max() > 0.1


def test_int8_of_nothing_but_zeros_is_zero(tmp_path):
    zeros = np.zeros(INPUTS, np.float32)
    product = int8_product({"layer0/inner": Range(zeros, zeros)}, static=True, reduced=False)
    run, _ = write(tmp_path, product, np.zeros_like(MATRIX))
    np.testing.assert_array_equal(run(np.zeros((1, 2, INPUTS), np.float32)), np.broadcast_to(SHIFT, (1, 2, OUTPUTS)))


@pytest.mark.parametrize("inputs", [96, 80])
def test_int4_weights_are_off_by_half_a_step_of_their_block(tmp_path, inputs):
    matrix = MATRIX[:inputs]
    run, tensors = write(tmp_path, int4_product(), matrix)
    steps = np.repeat(tensors["weight_scale"].reshape(OUTPUTS, -1), 32, axis=1)[:, :inputs].T
    bound = 0.501 * steps

    restored = run(np.eye(inputs, dtype=np.float32)[None])[0] - SHIFT  # each row of the weight, as the operator sees it

    assert tensors["weight"].dtype == np.uint8
    assert tensors["weight"].nbytes == OUTPUTS * 96 // 2
    assert (np.abs(restored - matrix) <= bound + 1e-5).all()
    x = SAMPLE[..., :inputs]
    error = np.abs(run(x) - (x @ matrix + SHIFT))
    assert (error <= np.abs(x) @ bound + 1e-3).all()
