"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

# Deterministic by default: a red run means that the code changed. Search for new examples with
# `pytest --hypothesis-profile=explore`. No deadline: test machines are shared.
settings.register_profile("project", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("project")
