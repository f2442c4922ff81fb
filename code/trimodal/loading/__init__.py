"""Cold start: a model directory becomes a ready pipeline."""
