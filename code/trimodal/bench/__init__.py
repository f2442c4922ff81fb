"""Measures a model directory on the host at hand: `trimodal bench`."""
