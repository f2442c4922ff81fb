from __future__ import annotations

from dataclasses import replace

import pytest

from trimodal.loading.facts import EncoderFacts, ModelFacts
from trimodal.loading.hardware import Gpu, Hardware
from trimodal.loading.plan import CPU, CUDA, TENSORRT, make_plan, phases_of
from trimodal.settings import Settings

BERT = ModelFacts(
    encoders=tuple(EncoderFacts(text, None, 12, 12, 768, 3072, 30522, "gelu") for text in ("chat", "events"))
)
INTEL = Hardware(2, 2**34, "Xeon", "GenuineIntel", ("amx_bf16", "amx_int8", "avx2", "avx512_vnni"))
AMD = Hardware(2, 2**34, "EPYC", "AuthenticAMD", ("avx2",))
H200 = replace(INTEL, gpu=Gpu("H200", 2**37, "580.1", "9.0"))
ONNX = {"onnxruntime": "1.31.1", "onnx": "1.23.2"}
BOTH = {**ONNX, "openvino": "2026.4.1"}


def names(plan):
    return [[rung.name for rung in group] for group in plan.groups]


def plan(facts=BERT, hardware=INTEL, libraries=ONNX, **settings):
    return make_plan(Settings(**settings), facts, hardware, libraries)


def test_fusion_is_what_is_asked_for_by_default():
    assert names(plan()) == [["rebuild-fp32"], ["stock-fp32"]]
    assert plan().asked == ("fusion",)
    assert "not installed" in plan().skipped["openvino-fp32"]


def test_nothing_is_tried_without_fusion():
    result = plan(fusion=False, precision="auto", libraries=BOTH)

    assert (names(result), result.asked) == ([], ())
    assert set(result.skipped.values()) == {"ENABLE_BERT_FUSION=false"}


def test_static_scales_are_preferred_for_int8():
    result = plan(precision="int8")

    assert [group[0] for group in names(result)] == [
        "rebuild-int8-static", "rebuild-int8-dynamic", "rebuild-int8-mixed", "rebuild-fp32", "stock-fp32",
    ]  # fmt: skip
    assert result.asked == ("fusion", "quantization")


def test_auto_tries_everything_in_one_group():
    assert names(plan(precision="auto", libraries=BOTH))[0] == [
        "rebuild-fp32", "rebuild-int8-static", "rebuild-int8-dynamic", "rebuild-int8-mixed", "openvino-fp32",
        "openvino-bf16",
    ]  # fmt: skip


def test_bf16_needs_the_instructions():
    assert names(plan(precision="bf16", libraries=BOTH))[0] == ["openvino-bf16"]

    result = plan(precision="bf16", libraries=BOTH, hardware=AMD, engine="openvino")
    assert "no bf16" in result.skipped["openvino-bf16"]
    assert "precision" in result.asked


def test_the_other_engine_is_chosen_by_itself_on_intel_only():
    assert "openvino-fp32" in names(plan(libraries=BOTH))[0]
    assert "Intel" in plan(libraries=BOTH, hardware=AMD).skipped["openvino-fp32"]
    assert "openvino-fp32" in names(plan(libraries=BOTH, hardware=AMD, precision="auto"))[0]
    assert names(plan(libraries=BOTH, hardware=AMD, engine="openvino")) == [["openvino-fp32"]]
    assert "openvino-fp32" not in str(names(plan(libraries=BOTH, engine="onnxruntime")))


def test_a_cpu_without_vnni_is_noted():
    assert any("VNNI" in note for note in plan(precision="int8", hardware=AMD).notes)
    assert plan(precision="int8").notes == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem": "no attention layer follows the embeddings"}, "no attention layer"),
        ({"sequence": True}, "every token of chat"),
    ],
)
def test_an_encoder_that_rebuild_does_not_know_is_left_to_the_stock_optimizer(change, words):
    first, second = BERT.encoders
    result = plan(replace(BERT, encoders=(replace(first, **change), second)))

    assert names(result) == [["stock-fp32"]]
    assert words in result.skipped["rebuild-fp32"]


def test_fixed_axes_are_left_as_they_are():
    axes = {"chat_input_ids": (2, "chunks", "tokens"), "events_input_ids": ("batch", "chunks", "tokens")}

    assert "axis is fixed" in plan(replace(BERT, axes=axes)).skipped["rebuild-fp32"]


def test_a_gpu_takes_the_graph_as_it_is():
    gpu = {"onnxruntime-gpu": "1.31.1"}

    assert names(plan(hardware=H200, libraries=gpu)) == [["cuda-fp32"]]
    assert names(plan(hardware=H200, libraries=gpu, precision="fp16")) == [
        ["tensorrt-fp16", "cuda-fp16"], ["cuda-fp32"],
    ]  # fmt: skip
    assert plan(hardware=H200, libraries=gpu, precision="fp16").asked == ("precision", "providers")
    assert names(plan(hardware=H200, libraries=gpu, precision="auto", tensorrt=False)) == [["cuda-fp16", "cuda-fp32"]]
    assert names(plan(hardware=H200)) == names(plan())  # without onnxruntime-gpu there is no use for it


def test_a_gpu_that_is_not_there_is_a_reason():
    result = plan(providers=(CUDA,))

    assert (names(result), result.asked) == (names(plan()), ("fusion", "providers"))
    assert result.skipped["cuda-fp32"] == "there is no GPU"


def test_providers_are_taken_by_name():
    named, *rest = plan(providers=("CoreMLExecutionProvider",)).groups

    assert [rung.providers for rung in named] == [("CoreMLExecutionProvider", CPU)]
    assert [[rung.name for rung in group] for group in rest] == names(plan())  # what comes after it is lost


def test_every_rung_has_its_phases():
    assert phases_of("rebuild-int8-static") == ("fusion", "quantization")
    assert phases_of("providers-fp32") == ("providers",)
    assert TENSORRT in plan(hardware=H200, libraries={"onnxruntime-gpu": "1"}, precision="fp16").rungs[0].providers
