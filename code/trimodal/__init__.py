"""Trimodal inference container: two BERT encoders, a tabular branch and a fusion head, served the SageMaker way."""

__version__ = "0.1.0"
