"""Trimodal inference container: two BERT encoders, a tabular branch and a fusion head, served the SageMaker way."""

import os

__version__ = "0.1.0"

# Nothing here may call home, and this is the one place that runs before any library does. ONNX Runtime's official Linux
# builds send events to Microsoft and keep a device id under HOME; `disable_telemetry_events()` comes too late for both
# (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md). A tokenizer that a model directory names is
# looked up in the machine's own copy of the Hugging Face hub. Whoever sets these otherwise means it; children inherit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
