from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from trimodal.errors import SettingsError, StartupError
from trimodal.limits import Limits
from trimodal.settings import MIB, Settings

DEFAULTS = {
    "model_dir": Path("/opt/ml/model"),
    "server": "mms",
    "multi_model": False,
    "port": 8080,
    "port_range": None,
    "workers": None,
    "startup_timeout": 600,
    "request_timeout": 60,
    "watchdog": None,
    "max_queue": 100,
    "max_batch": 1,
    "batch_delay": 0.002,
    "report_errors": False,
    "max_payload": 25 * MIB,
    "limits": Limits(records=100_000, depth=32, text=200_000),
    "default_accept": "application/json",
    "program": "inference.py",
    "intra_op_threads": None,
    "inter_op_threads": 1,
    "fusion": True,
    "precision": "fp32",
    "tensorrt": True,
    "profiling": False,
    "engine": "auto",
    "providers": (),
    "optimized_dir": None,
    "budget": 300,
    "strict": False,
    "encoder_cache": 1024,
    "shadow_rate": 0.0,
    "metrics_sinks": ("emf",),
    "metrics_namespace": "TrimodalInference",
    "metrics_interval": 60,
    "endpoint_name": "",
    "variant_name": "AllTraffic",
    "score_numbers": False,
    "response_fields": (),
    "log_level": "INFO",
    "run_dir": None,
}

GOOD = [
    ("SM_MODEL_DIR", "/srv/model", "model_dir", Path("/srv/model")),
    ("SAGEMAKER_BIND_TO_PORT", "9000", "port", 9000),
    ("SAGEMAKER_BIND_TO_PORT", " 1 ", "port", 1),
    ("SAGEMAKER_BIND_TO_PORT", "65535", "port", 65535),
    ("SAGEMAKER_SAFE_PORT_RANGE", "9000-9999", "port_range", (9000, 9999)),
    ("SAGEMAKER_SAFE_PORT_RANGE", "9000-9000", "port_range", (9000, 9000)),
    ("SAGEMAKER_MODEL_SERVER_WORKERS", "3", "workers", 3),
    ("SAGEMAKER_STARTUP_TIMEOUT", "30", "startup_timeout", 30),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "120", "request_timeout", 120),
    ("REQUEST_TIMEOUT_SECONDS", "120", "request_timeout", 120),
    ("MODEL_SERVER", "ASGI", "server", "asgi"),
    ("SAGEMAKER_MULTI_MODEL", "true", "multi_model", True),
    ("SAGEMAKER_MULTI_MODEL", "false", "multi_model", False),
    ("WATCHDOG_SECONDS", "5", "watchdog", 5),
    ("MAX_QUEUE_SIZE", "7", "max_queue", 7),
    ("MAX_BATCH_SIZE", "8", "max_batch", 8),
    ("MAX_BATCH_DELAY_MS", "5", "batch_delay", 0.005),
    ("ON_RECORD_ERROR", "report", "report_errors", True),
    ("SAGEMAKER_BATCH", "true", "report_errors", True),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6", "max_payload", 6 * MIB),
    ("MAX_RECORDS", "1", "limits", Limits(records=1)),
    ("MAX_JSON_DEPTH", "3", "limits", Limits(depth=3)),
    ("MAX_TEXT_CHARACTERS", "1000", "limits", Limits(text=1000)),
    ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv", "default_accept", "text/csv"),
    ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "Application/JSONLines", "default_accept", "application/jsonlines"),
    ("SAGEMAKER_PROGRAM", "handler.py", "program", "handler.py"),
    ("ONNX_INTRA_OP_THREADS", "2", "intra_op_threads", 2),
    ("ONNX_INTER_OP_THREADS", "4", "inter_op_threads", 4),
    ("ENABLE_BERT_FUSION", "false", "fusion", False),
    ("ENABLE_BERT_FUSION", "True", "fusion", True),
    ("ENABLE_BERT_FUSION", " no ", "fusion", False),
    ("ENABLE_QUANTIZATION", "true", "precision", "int8"),
    ("ENABLE_QUANTIZATION", "0", "precision", "fp32"),
    ("MODEL_PRECISION", "BF16", "precision", "bf16"),
    ("MODEL_PRECISION", "fp16", "precision", "fp16"),
    ("MODEL_PRECISION", "int4", "precision", "int4"),
    ("MODEL_PRECISION", "auto", "precision", "auto"),
    ("ENABLE_TENSORRT", "off", "tensorrt", False),
    ("ENABLE_TENSORRT", "1", "tensorrt", True),
    ("ENABLE_ONNX_PROFILING", "on", "profiling", True),
    ("ENABLE_ONNX_PROFILING", "FALSE", "profiling", False),
    ("INFERENCE_ENGINE", "OpenVINO", "engine", "openvino"),
    ("INFERENCE_ENGINE", "onnxruntime", "engine", "onnxruntime"),
    ("ONNX_EXECUTION_PROVIDERS", "CPUExecutionProvider", "providers", ("CPUExecutionProvider",)),
    (
        "ONNX_EXECUTION_PROVIDERS",
        " CUDAExecutionProvider,, CPUExecutionProvider,",
        "providers",
        ("CUDAExecutionProvider", "CPUExecutionProvider"),
    ),
    ("OPTIMIZED_MODEL_DIR", "/var/cache/models", "optimized_dir", Path("/var/cache/models")),
    ("OPTIMIZATION_BUDGET_SECONDS", "1", "budget", 1),
    ("OPTIMIZATION_BUDGET_SECONDS", "3600", "budget", 3600),
    ("STRICT_OPTIMIZATION", "yes", "strict", True),
    ("STRICT_OPTIMIZATION", "no", "strict", False),
    ("ENCODER_CACHE_ENTRIES", "0", "encoder_cache", 0),
    ("ENCODER_CACHE_ENTRIES", "10000000", "encoder_cache", 10_000_000),
    ("SHADOW_SAMPLE_RATE", "0.01", "shadow_rate", 0.01),
    ("SHADOW_SAMPLE_RATE", "1", "shadow_rate", 1.0),
    ("METRICS_SINKS", "CloudWatch, emf,emf", "metrics_sinks", ("cloudwatch", "emf")),
    ("METRICS_SINKS", "none", "metrics_sinks", ()),
    ("METRICS_NAMESPACE", "Team/Returns_1", "metrics_namespace", "Team/Returns_1"),
    ("METRICS_INTERVAL_SECONDS", "1", "metrics_interval", 1),
    ("ENDPOINT_NAME", "returns-2", "endpoint_name", "returns-2"),
    ("VARIANT_NAME", "B", "variant_name", "B"),
    ("SCORE_FORMAT", "number", "score_numbers", True),
    ("SCORE_FORMAT", "String", "score_numbers", False),
    ("RESPONSE_FIELDS", "output-label", "response_fields", ("output-label",)),
    ("RESPONSE_FIELDS", " ID , output-label,", "response_fields", ("id", "output-label")),
    ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
    ("LOG_LEVEL", "ERROR", "log_level", "ERROR"),
    ("TRIMODAL_RUN_DIR", "/tmp/run", "run_dir", Path("/tmp/run")),
]
VARIABLES = sorted({name for name, *_ in GOOD})

WHOLE_NUMBERS = [
    "SAGEMAKER_BIND_TO_PORT",
    "SAGEMAKER_MODEL_SERVER_WORKERS",
    "SAGEMAKER_STARTUP_TIMEOUT",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB",
    "MAX_RECORDS",
    "MAX_JSON_DEPTH",
    "MAX_TEXT_CHARACTERS",
    "ONNX_INTRA_OP_THREADS",
    "ONNX_INTER_OP_THREADS",
    "OPTIMIZATION_BUDGET_SECONDS",
]
FLAGS = [
    "ENABLE_BERT_FUSION",
    "ENABLE_QUANTIZATION",
    "ENABLE_TENSORRT",
    "ENABLE_ONNX_PROFILING",
    "STRICT_OPTIMIZATION",
    "SAGEMAKER_MULTI_MODEL",
]
BAD = [
    *(
        (name, value)
        for name in WHOLE_NUMBERS
        for value in ("0", "-1", "many", "1.5", "1e3", "2 3", "0x10", "999999999")
    ),
    ("SAGEMAKER_BIND_TO_PORT", "65536"),
    *(
        ("SAGEMAKER_SAFE_PORT_RANGE", value)
        for value in ("9000", "9999-9000", "0-10", "1-65536", "a-b", "-1-5", "1-2-3")
    ),
    ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/html"),
    ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "*/*"),
    *((name, value) for name in FLAGS for value in ("2", "-1", "maybe", "t", "true,false", "none")),
    *(("MODEL_PRECISION", value) for value in ("fp8", "float32", "8", "int8,fp16", "true")),
    ("INFERENCE_ENGINE", "tensorrt"),
    ("INFERENCE_ENGINE", "onnx"),
    ("OPTIMIZATION_BUDGET_SECONDS", "3601"),
    *(("METRICS_SINKS", value) for value in ("statsd", "none,emf")),
    *(("METRICS_NAMESPACE", value) for value in ("AWS/SageMaker", "a b", "x" * 256)),
    *(("METRICS_INTERVAL_SECONDS", value) for value in ("0", "3601", "often")),
    *((key, value) for key in ("ENDPOINT_NAME", "VARIANT_NAME") for value in ("a_b", "-a", "x" * 64)),
    *(("SHADOW_SAMPLE_RATE", value) for value in ("-0.1", "1.01", "nan", "some")),
    *(("ENCODER_CACHE_ENTRIES", value) for value in ("-1", "10000001", "many", "1.5")),
    ("SCORE_FORMAT", "numbers"),
    ("SCORE_FORMAT", "true"),
    ("RESPONSE_FIELDS", "label"),
    ("LOG_LEVEL", "verbose"),
    ("MODEL_SERVER", "flask"),
    ("ON_RECORD_ERROR", "ignore"),
]


def values(settings):
    return {name: getattr(settings, name) for name in DEFAULTS}


def test_an_empty_environment_gives_the_defaults():
    settings = Settings.from_environment({})
    assert values(settings) == DEFAULTS
    assert settings == Settings()


def test_every_setting_is_tested_here():
    assert set(Settings.__dataclass_fields__) == set(DEFAULTS) == {field for _, _, field, _ in GOOD}


def test_other_variables_do_not_matter():
    assert Settings.from_environment({"PATH": "/bin", "sagemaker_bind_to_port": "1", "PORT": "2"}) == Settings()


@pytest.mark.parametrize(("name", "text", "field", "value"), GOOD)
def test_a_variable_sets_its_own_field_only(name, text, field, value):
    assert values(Settings.from_environment({name: text})) == DEFAULTS | {field: value}


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_unset(name, text):
    assert Settings.from_environment({name: text}) == Settings()


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_names_variable_and_value(name, text):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: text})
    assert name in str(caught.value)
    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, StartupError)


def test_a_message_says_what_would_do():
    with pytest.raises(SettingsError, match=r"SCORE_FORMAT='float' must be one of string, number\."):
        Settings.from_environment({"SCORE_FORMAT": "float"})
    with pytest.raises(SettingsError, match=r"SAGEMAKER_BIND_TO_PORT='http' must be a whole number from 1 to 65535\."):
        Settings.from_environment({"SAGEMAKER_BIND_TO_PORT": "http"})
    with pytest.raises(SettingsError, match="such as 9000-9999"):
        Settings.from_environment({"SAGEMAKER_SAFE_PORT_RANGE": "9000"})


@pytest.mark.parametrize(
    ("quantization", "precision", "result"),
    [
        ("true", "", "int8"),
        ("true", "int8", "int8"),
        ("true", "INT4", "int4"),
        ("true", "auto", "auto"),
        ("false", "", "fp32"),
        ("false", "int8", "int8"),
        ("false", "bf16", "bf16"),
        ("", "int4", "int4"),
        ("", "", "fp32"),
    ],
)
def test_quantization_and_precision_together(quantization, precision, result):
    settings = Settings.from_environment({"ENABLE_QUANTIZATION": quantization, "MODEL_PRECISION": precision})

    assert values(settings) == DEFAULTS | {"precision": result}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_quantization_and_a_precision_that_contradicts_it_are_refused(precision):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"ENABLE_QUANTIZATION": "true", "MODEL_PRECISION": precision})
    assert str(caught.value) == (
        f"ENABLE_QUANTIZATION=true asks for int8 and MODEL_PRECISION={precision!r} does not; set one of them."
    )


def test_one_of_several_fields_is_named():
    with pytest.raises(SettingsError, match=r"RESPONSE_FIELDS: 'score' must be one of output-label, id\."):
        Settings.from_environment({"RESPONSE_FIELDS": "id,score"})


def test_the_model_server_that_exists_may_be_named():
    assert Settings.from_environment({"MODEL_SERVER": "MMS"}) == Settings()


def test_several_models_need_a_server_with_several_processes():
    with pytest.raises(SettingsError, match="SAGEMAKER_MULTI_MODEL=true needs MODEL_SERVER=mms"):
        Settings.from_environment({"SAGEMAKER_MULTI_MODEL": "true", "MODEL_SERVER": "asgi"})


def test_one_thing_by_two_names_must_agree():
    both = {"REQUEST_TIMEOUT_SECONDS": "9", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "9"}
    assert Settings.from_environment(both).request_timeout == 9
    with pytest.raises(SettingsError, match="REQUEST_TIMEOUT_SECONDS"):
        Settings.from_environment(both | {"REQUEST_TIMEOUT_SECONDS": "8"})


def test_batch_transform_may_still_fail_a_request():
    variables = {"SAGEMAKER_BATCH": "true", "ON_RECORD_ERROR": "fail"}
    assert not Settings.from_environment(variables).report_errors


def test_when_work_is_taken_for_stuck():
    assert Settings().stuck_after == 120
    assert Settings(request_timeout=5).stuck_after == 30
    assert Settings(watchdog=7).stuck_after == 7


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1
