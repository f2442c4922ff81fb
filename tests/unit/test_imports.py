"""The serving path runs without what only training, export and AWS need; in a process of its own, to be sure."""

from __future__ import annotations

import json
import string
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

# Packages that a serving container may lack.
ABSENT = ("torch", "transformers", "onnx", "boto3", "botocore", "pandas", "sklearn")

REFUSE = f"""
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {ABSENT!r}:
                raise ModuleNotFoundError(f"refused: {{name}}", name=name)

    sys.meta_path.insert(0, Refuse())
"""

GRAPH = """
    <ir_version: 8, opset_import: ["" : 17]>
    bag_of_words (
        int64[B,C1,T1] chat_input_ids, int64[B,C1,T1] chat_attention_mask,
        int64[B,C2,T2] events_input_ids, int64[B,C2,T2] events_attention_mask, float[B,1] amount
    ) => (float[B,2] probs) {
        axes = Constant<value_ints=[1,2]>()
        chat_weights = Gather(weights, chat_input_ids)
        chat_mask = Cast<to=1>(chat_attention_mask)
        chat_masked = Mul(chat_weights, chat_mask)
        chat_sum = ReduceSum<keepdims=0>(chat_masked, axes)
        events_weights = Gather(weights, events_input_ids)
        events_mask = Cast<to=1>(events_attention_mask)
        events_masked = Mul(events_weights, events_mask)
        events_sum = ReduceSum<keepdims=0>(events_masked, axes)
        texts = Sub(chat_sum, events_sum)
        column = Constant<value_ints=[1]>()
        texts_column = Unsqueeze(texts, column)
        bounded = Tanh(amount)
        logits = Concat<axis=1>(texts_column, bounded)
        probs = Softmax<axis=1>(logits)
    }
"""

RECORD = {"chat": "[bom]<b>Hello</b>[eom]", "events": "[bom]abc[eom]", "amount": 2}


def run(script, *arguments, refuse=True):
    code = (textwrap.dedent(REFUSE) if refuse else "") + textwrap.dedent(script)
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A small model directory: a graph, a vocabulary, a config."""
    folder = tmp_path_factory.mktemp("model")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", *string.ascii_lowercase]
    tokens += [f"##{letter}" for letter in string.ascii_lowercase]
    model = parser.parse_model(textwrap.dedent(GRAPH))
    weights = np.linspace(-0.1, 0.1, len(tokens), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    onnx.save(model, folder / "model.onnx")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(tokens))
    steps = ["dialogue_splitter", "html_normalizer", "text_normalizer", "dialogue_chunker", "tokenizer"]
    config = {
        "primary_text_name": "chat",
        "secondary_text_name": "events",
        "tab_field_list": ["amount"],
        "num_classes": 2,
        "max_sen_len": 16,
        "primary_text_processing_steps": steps,
        "secondary_text_processing_steps": steps,
    }
    (folder / "hyperparameters.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("module", ["trimodal.serving.pipeline", "inference", "trimodal.cli", "trimodal.loading.load"])
def test_a_module_is_imported_without_them(module):
    done = run(f"import {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["trimodal.serving.pipeline", "inference"])
def test_importing_does_not_even_try(module):
    done = run(
        f"""
        import sys
        import {module}
        print(sorted({{name.partition(".")[0] for name in sys.modules}} & set(sys.argv[1:])))
        """,
        *ABSENT,
        "pyarrow",
        "sagemaker_inference",
        refuse=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_refusal_works():
    done = run("import torch")
    assert done.returncode != 0
    assert "refused: torch" in done.stderr


def test_requests_are_answered_without_them(model_dir):
    done = run(
        """
        import io, json, os, sys

        os.environ["ONNX_INTRA_OP_THREADS"] = "1"
        import inference
        import pyarrow
        from pyarrow import parquet

        model = inference.model_fn(sys.argv[1])
        record = json.loads(sys.argv[2])
        table = io.BytesIO()
        parquet.write_table(pyarrow.table({name: [value] for name, value in record.items()}), table)
        csv = "{},{},{}\\n{},{},{}\\n".format(*record, *record.values())
        for body, content_type in (
            (json.dumps(record).encode(), "application/json"),
            (json.dumps(record).encode(), "application/jsonlines"),
            (csv.encode(), "text/csv"),
            (table.getvalue(), "application/x-parquet"),
        ):
            data = inference.input_fn(body, content_type)
            answer, media = inference.output_fn(inference.predict_fn(data, model), "application/json")
            assert media == "application/json"
            print(answer.decode())
        """,
        model_dir,
        json.dumps(RECORD),
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["predictions"] for line in done.stdout.splitlines()]
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    ((row,),) = [answers[0]]
    assert row["legacy-score"] == row["calibrated-score"] == row["score-percentile"]
    assert 0.5 < float(row["legacy-score"]) < 0.95
