"""What a command reports instead of a traceback."""

from __future__ import annotations


class DeployError(Exception):
    """A command cannot be done; the text says what to do about it."""
