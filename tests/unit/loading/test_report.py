from __future__ import annotations

import pytest

from trimodal.loading.facts import EncoderFacts, ModelFacts
from trimodal.loading.hardware import Hardware
from trimodal.loading.plan import make_plan
from trimodal.loading.report import choose, make_report, outcomes, to_markdown
from trimodal.settings import Settings

BERT = ModelFacts(encoders=tuple(EncoderFacts(text, None, 2, 2, 64, 128, 99, "gelu") for text in ("a", "b")))
REFERENCE = {"event": "reference", "records": 4}


def planned(**settings):
    plan = make_plan(Settings(**settings), BERT, Hardware(2, 2**34), {"onnxruntime": "1", "onnx": "1"})
    return {"event": "plan", "plan": plan.to_json(), "facts": BERT.to_json()}


def built(rung, fused=4):
    facts = {"fused": fused, "layers": 4}
    return {"event": "built", "rung": rung, "built": facts, "seconds": 1, "bytes": 10**6, "peak_bytes": 10**8}


def judged(rung, ratio=0.5, refusal=None):
    comparison = {"largest": 1e-6, "mean": 1e-7, "agreement": 1.0, "f1": None, "f1_reference": None, "refusal": refusal}
    return {
        "event": "judged", "rung": rung, "comparison": comparison, "ratio": ratio, "milliseconds": 5.0,
        "reference_milliseconds": 10.0, "open_seconds": 0.1, "peak_bytes": 10**8, "probes": [[0.5, 0.5]],
    }  # fmt: skip


def end(step, rung=None, cause=None):
    return {"event": "end", "step": step, "rung": rung, "cause": cause}


def choice(*events):
    return choose(events, outcomes(events))


def test_the_fastest_of_the_first_group_that_passed():
    result = choice(
        planned(precision="auto"), REFERENCE, judged("rebuild-fp32", 0.9), judged("rebuild-int8-static", 0.5)
    )

    assert (result.level, result.rung, dict(result.causes)) == (1, "rebuild-int8-static", {})


def test_losing_one_phase_of_two_keeps_the_level():
    refused = [judged(f"rebuild-int8-{kind}", refusal="F1 falls") for kind in ("static", "dynamic", "mixed")]

    result = choice(planned(precision="int8"), REFERENCE, *refused, judged("rebuild-fp32", 0.9))

    assert (result.level, result.rung) == (1, "rebuild-fp32")
    assert "rebuild-int8-static: F1 falls" in result.causes["quantization"]


def test_losing_all_that_was_asked_for_is_level_2():
    result = choice(
        planned(), REFERENCE, end("build", "rebuild-fp32", "no space"), end("build", "stock-fp32", "fused 0")
    )

    assert (result.level, result.rung) == (2, "tuned")
    assert result.causes == {"fusion": "rebuild-fp32: no space; stock-fp32: fused 0"}


def test_a_slower_rung_is_declined_and_the_level_stays():
    result = choice(planned(), REFERENCE, judged("rebuild-fp32", 1.04), judged("stock-fp32", 1.2))

    assert (result.level, result.rung, result.outcome) == (1, "tuned", None)
    assert result.declined == ("rebuild-fp32", "stock-fp32")
    assert result.causes == {}


def test_nothing_asked_for_is_level_1():
    assert choice(planned(fusion=False), REFERENCE).level == 1


def test_tuned_options_that_change_the_scores_are_level_3():
    result = choice(planned(), end("reference", None, "tuned options change the scores"))

    assert (result.level, result.rung) == (3, "baseline")
    assert "change the scores" in result.causes["optimization"]


def test_a_process_that_did_not_start_is_level_2():
    assert choice(end("start", None, "killed by signal 9, probably for memory")).causes == {
        "optimization": "killed by signal 9, probably for memory"
    }
    assert choice().level == 2


def test_a_crash_keeps_what_had_passed():
    crash = end("judge", "rebuild-int8-static", "killed by signal 9, probably for memory")

    result = choice(planned(precision="auto"), REFERENCE, judged("rebuild-fp32", 0.9), crash)

    assert result.rung == "rebuild-fp32"


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_the_report_tells_everything(ratio):
    events = [planned(), REFERENCE, built("rebuild-fp32"), judged("rebuild-fp32", ratio)]
    tried = outcomes(events)

    report = make_report(events, tried, choose(events, tried), 12.3)

    first = report["rungs"][0]
    assert (first["rung"], first["fused"], first["ratio"]) == ("rebuild-fp32", 4, ratio)
    text = to_markdown(report)
    assert f"| rebuild-fp32 | {'passed' if ratio < 1 else 'declined'} | 4/4 | 1.0e-06 | 1.0e-07 | 100.0% |" in text
    assert "openvino-fp32: openvino is not installed" in text
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [13] * 5
