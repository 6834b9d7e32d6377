"""The one way in which the demo fails."""

from __future__ import annotations


class DemoFailed(Exception):
    """Something is not as the story needs it; the text says what, and what can be done about it."""
