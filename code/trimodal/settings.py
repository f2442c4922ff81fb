"""The only reader of the environment: one frozen `Settings`, made at start and passed on.

A value that cannot be used stops the start with a message that names the variable, the value and what would do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trimodal.errors import SettingsError
from trimodal.limits import DEFAULT_LIMITS, Limits

MIB = 1024 * 1024
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
RESPONSE_FIELDS = ("output-label", "id")
MEDIA_TYPES = ("application/json", "application/jsonlines", "text/csv")
SERVERS = ("mms", "asgi")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "auto")
SINKS = ("emf", "cloudwatch", "prometheus", "none")
ENGINES = ("auto", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says; the README's table documents each variable.

    Attributes:
        model_dir: the model directory (`SM_MODEL_DIR`).
        server: what answers (`MODEL_SERVER`).
        multi_model: models are loaded and unloaded while the container runs (`SAGEMAKER_MULTI_MODEL`), and `model_dir`
            is not read.
        port: port of `/ping` and `/invocations` (`SAGEMAKER_BIND_TO_PORT`).
        port_range: ports that may be used inside the container, first and last (`SAGEMAKER_SAFE_PORT_RANGE`), or None.
        workers: worker processes, or requests computed at once where one process serves
            (`SAGEMAKER_MODEL_SERVER_WORKERS`), or None to choose by cores and memory.
        startup_timeout: seconds until the model must be ready (`SAGEMAKER_STARTUP_TIMEOUT`).
        request_timeout: seconds that a request may take (`SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS`, also called
            `REQUEST_TIMEOUT_SECONDS`).
        watchdog: seconds after which a piece of work that does not end is taken for stuck, and the serving process is
            started again (`WATCHDOG_SECONDS`), or None for twice the request timeout.
        max_queue: requests that may wait (`MAX_QUEUE_SIZE`); more are answered 429.
        max_batch: records of several requests that are run together where that pays (`MAX_BATCH_SIZE`); 1 for never.
        batch_delay: seconds that a record waits for others to be run with (`MAX_BATCH_DELAY_MS`).
        report_errors: answer a record that cannot be scored with an error in its place, instead of failing its request
            (`ON_RECORD_ERROR`; the default is `report` in Batch Transform, which sets `SAGEMAKER_BATCH`).
        max_payload: bytes of the largest request body (`SAGEMAKER_MAX_PAYLOAD_IN_MB`).
        limits: what else bounds a request (`MAX_RECORDS`, `MAX_JSON_DEPTH`, `MAX_TEXT_CHARACTERS`).
        default_accept: media type of answers to `*/*` (`SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT`).
        program: file name of a user's handlers in the model directory's `code/` (`SAGEMAKER_PROGRAM`).
        intra_op_threads: threads of one operator (`ONNX_INTRA_OP_THREADS`), or None for cores ÷ workers.
        inter_op_threads: operators at once (`ONNX_INTER_OP_THREADS`).
        fusion: rebuild or fuse the text encoders (`ENABLE_BERT_FUSION`).
        precision: precision of the weights and products that is asked for (`MODEL_PRECISION`, or `int8` by
            `ENABLE_QUANTIZATION`); `auto` takes the fastest that passes.
        tensorrt: use TensorRT where there is a GPU (`ENABLE_TENSORRT`).
        profiling: write ONNX Runtime's profile of each graph (`ENABLE_ONNX_PROFILING`).
        engine: what runs the graphs (`INFERENCE_ENGINE`).
        providers: execution providers, best first (`ONNX_EXECUTION_PROVIDERS`), or empty to choose by the hardware.
        optimized_dir: where optimized models are kept (`OPTIMIZED_MODEL_DIR`), or None to choose.
        budget: seconds that the optimization may take at start (`OPTIMIZATION_BUDGET_SECONDS`).
        strict: fail the start instead of taking a lower level (`STRICT_OPTIMIZATION`).
        encoder_cache: texts whose encoder outputs are remembered (`ENCODER_CACHE_ENTRIES`); 0 for none.
        shadow_rate: share of the records that the unoptimized model scores again in idle time (`SHADOW_SAMPLE_RATE`).
        score_numbers: scores as JSON numbers instead of strings (`SCORE_FORMAT`).
        response_fields: what answers hold beside the scores (`RESPONSE_FIELDS`).
        metrics_sinks: where measurements go (`METRICS_SINKS`); empty for nowhere.
        metrics_namespace: of the metrics in CloudWatch (`METRICS_NAMESPACE`).
        metrics_interval: seconds between two publications (`METRICS_INTERVAL_SECONDS`).
        endpoint_name: the endpoint, as dimension of the metrics (`ENDPOINT_NAME`), or empty.
        variant_name: its variant (`VARIANT_NAME`).
        log_level: level of the log (`LOG_LEVEL`).
        run_dir: where workers report to the process that started them (`TRIMODAL_RUN_DIR`, internal), or None.
    """

    model_dir: Path = Path("/opt/ml/model")
    server: str = "mms"
    multi_model: bool = False
    port: int = 8080
    port_range: tuple[int, int] | None = None
    workers: int | None = None
    startup_timeout: int = 600
    request_timeout: int = 60
    watchdog: int | None = None
    max_queue: int = 100
    max_batch: int = 1
    batch_delay: float = 0.002
    report_errors: bool = False
    max_payload: int = 25 * MIB
    limits: Limits = DEFAULT_LIMITS
    default_accept: str = "application/json"
    program: str = "inference.py"
    intra_op_threads: int | None = None
    inter_op_threads: int = 1
    fusion: bool = True
    precision: str = "fp32"
    tensorrt: bool = True
    profiling: bool = False
    engine: str = "auto"
    providers: tuple[str, ...] = ()
    optimized_dir: Path | None = None
    budget: int = 300
    strict: bool = False
    encoder_cache: int = 1024
    shadow_rate: float = 0.0
    score_numbers: bool = False
    response_fields: tuple[str, ...] = ()
    metrics_sinks: tuple[str, ...] = ("emf",)
    metrics_namespace: str = "TrimodalInference"
    metrics_interval: int = 60
    endpoint_name: str = ""
    variant_name: str = "AllTraffic"
    log_level: str = "INFO"
    run_dir: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Reads the variables.

        Raises:
            SettingsError: a variable's value cannot be used.
        """
        env = _Environment(environ)
        return cls(
            model_dir=Path(env.text("SM_MODEL_DIR", "/opt/ml/model")),
            server=env.choice("MODEL_SERVER", SERVERS, "mms"),
            multi_model=env.multi_model("SAGEMAKER_MULTI_MODEL"),
            port=env.integer("SAGEMAKER_BIND_TO_PORT", 8080, 1, 65535),
            port_range=env.port_range("SAGEMAKER_SAFE_PORT_RANGE"),
            workers=env.optional_integer("SAGEMAKER_MODEL_SERVER_WORKERS", 1, 1024),
            startup_timeout=env.integer("SAGEMAKER_STARTUP_TIMEOUT", 600, 1, 3600),
            request_timeout=env.either(
                "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "REQUEST_TIMEOUT_SECONDS", 60, 1, 3600
            ),
            watchdog=env.optional_integer("WATCHDOG_SECONDS", 1, 86_400),
            max_queue=env.integer("MAX_QUEUE_SIZE", 100, 1, 100_000),
            max_batch=env.integer("MAX_BATCH_SIZE", 1, 1, 1024),
            batch_delay=env.integer("MAX_BATCH_DELAY_MS", 2, 0, 1000) / 1000,
            report_errors=env.report_errors(),
            max_payload=env.integer("SAGEMAKER_MAX_PAYLOAD_IN_MB", 25, 1, 1024) * MIB,
            limits=Limits(
                records=env.integer("MAX_RECORDS", DEFAULT_LIMITS.records, 1, 1_000_000),
                depth=env.integer("MAX_JSON_DEPTH", DEFAULT_LIMITS.depth, 3, 200),
                text=env.integer("MAX_TEXT_CHARACTERS", DEFAULT_LIMITS.text, 1000, 100_000_000),
            ),
            default_accept=env.choice("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", MEDIA_TYPES, "application/json"),
            program=env.text("SAGEMAKER_PROGRAM", "inference.py"),
            intra_op_threads=env.optional_integer("ONNX_INTRA_OP_THREADS", 1, 1024),
            inter_op_threads=env.integer("ONNX_INTER_OP_THREADS", 1, 1, 1024),
            fusion=env.flag("ENABLE_BERT_FUSION", default=True),
            precision=env.precision(),
            tensorrt=env.flag("ENABLE_TENSORRT", default=True),
            profiling=env.flag("ENABLE_ONNX_PROFILING", default=False),
            engine=env.choice("INFERENCE_ENGINE", ENGINES, "auto"),
            providers=env.names("ONNX_EXECUTION_PROVIDERS"),
            optimized_dir=Path(folder) if (folder := env.text("OPTIMIZED_MODEL_DIR", "")) else None,
            budget=env.integer("OPTIMIZATION_BUDGET_SECONDS", 300, 1, 3600),
            strict=env.flag("STRICT_OPTIMIZATION", default=False),
            encoder_cache=env.integer("ENCODER_CACHE_ENTRIES", 1024, 0, 10_000_000),
            shadow_rate=env.share("SHADOW_SAMPLE_RATE"),
            score_numbers=env.choice("SCORE_FORMAT", ("string", "number"), "string") == "number",
            response_fields=env.choices("RESPONSE_FIELDS", RESPONSE_FIELDS),
            metrics_sinks=env.sinks("METRICS_SINKS"),
            metrics_namespace=env.pattern("METRICS_NAMESPACE", "TrimodalInference", _NAMESPACE, _NAMESPACE_RULE),
            metrics_interval=env.integer("METRICS_INTERVAL_SECONDS", 60, 1, 3600),
            endpoint_name=env.pattern("ENDPOINT_NAME", "", _NAME, _NAME_RULE),
            variant_name=env.pattern("VARIANT_NAME", "AllTraffic", _NAME, _NAME_RULE),
            log_level=env.choice("LOG_LEVEL", LOG_LEVELS, "INFO", upper=True),
            run_dir=Path(run_dir) if (run_dir := env.text("TRIMODAL_RUN_DIR", "")) else None,
        )

    @property
    def stuck_after(self) -> int:
        """Seconds after which a piece of work is taken for stuck."""
        return self.watchdog or max(30, 2 * self.request_timeout)


_NAMESPACE = re.compile(r"(?!AWS/)[0-9A-Za-z.\-_/#:]{1,255}")
_NAMESPACE_RULE = "1 to 255 letters, digits and .-_/#: that do not begin with AWS/"
_NAME = re.compile(r"[0-9A-Za-z](-*[0-9A-Za-z]){0,62}")
_NAME_RULE = "at most 63 letters, digits and hyphens"

_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class _Environment:
    """Typed look-ups; a variable that is empty counts as unset."""

    environ: Mapping[str, str]

    def text(self, key: str, default: str) -> str:
        return self.environ.get(key, "").strip() or default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.optional_integer(key, low, high)
        return default if value is None else value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        text = self.text(key, "")
        if not text:
            return None
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise SettingsError(f"{key}={text!r} must be a whole number from {low} to {high}.")
        return value

    def either(self, key: str, other: str, default: int, low: int, high: int) -> int:
        """Reads a number that has two names."""
        values = {self.optional_integer(name, low, high) for name in (key, other)} - {None}
        if len(values) > 1:
            raise SettingsError(f"{key} and {other} name the same thing and differ; set one of them.")
        return next((value for value in values if value is not None), default)

    def share(self, key: str) -> float:
        text = self.text(key, "0")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise SettingsError(f"{key}={text!r} must be a number from 0 to 1.")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str, *, upper: bool = False) -> str:
        text = self.text(key, default)
        value = text.upper() if upper else text.lower()
        if value not in allowed:
            raise SettingsError(f"{key}={text!r} must be one of {', '.join(allowed)}.")
        return value

    def choices(self, key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower() for name in self.names(key))
        for name in names:
            if name not in allowed:
                raise SettingsError(f"{key}: {name!r} must be one of {', '.join(allowed)}.")
        return names

    def sinks(self, key: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(self.choices(key, SINKS))) or ("emf",)
        if "none" in names and len(names) > 1:
            raise SettingsError(f"{key}={self.text(key, '')!r}: 'none' stands alone.")
        return () if names == ("none",) else names

    def pattern(self, key: str, default: str, allowed: re.Pattern[str], rule: str) -> str:
        text = self.text(key, default)
        if text and not allowed.fullmatch(text):
            raise SettingsError(f"{key}={text!r} must be {rule}.")
        return text

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.text(key, "").split(",") if name.strip())

    def flag(self, key: str, *, default: bool) -> bool:
        text = self.text(key, str(default)).lower()
        if text not in _FLAGS:
            raise SettingsError(f"{key}={text!r} must be true or false.")
        return _FLAGS[text]

    def multi_model(self, key: str) -> bool:
        """Several models need several processes, which only one of the servers has."""
        wanted = self.flag(key, default=False)
        if wanted and self.text("MODEL_SERVER", "mms").lower() != "mms":
            raise SettingsError(f"{key}=true needs MODEL_SERVER=mms, which has processes for each model.")
        return wanted

    def report_errors(self) -> bool:
        """Batch Transform fails the whole file with one request, so that there each record answers for itself."""
        default = "report" if self.flag("SAGEMAKER_BATCH", default=False) else "fail"
        return self.choice("ON_RECORD_ERROR", ("fail", "report"), default) == "report"

    def precision(self) -> str:
        """Joins the two variables that ask for a precision."""
        quantization = self.flag("ENABLE_QUANTIZATION", default=False)
        precision = self.choice("MODEL_PRECISION", PRECISIONS, "int8" if quantization else "fp32")
        if quantization and precision not in ("int8", "int4", "auto"):
            raise SettingsError(
                f"ENABLE_QUANTIZATION=true asks for int8 and MODEL_PRECISION={precision!r} does not; set one of them."
            )
        return precision

    def port_range(self, key: str) -> tuple[int, int] | None:
        text = self.text(key, "")
        if not text:
            return None
        first, _, last = text.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
            raise SettingsError(f"{key}={text!r} must be two ports such as 9000-9999.")
        return int(first), int(last)
