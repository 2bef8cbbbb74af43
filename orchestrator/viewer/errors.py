"""What a request of the viewer may ask for in vain."""

from __future__ import annotations


class NotThere(Exception):
    """There is no such run, step, evaluation or sample; the message says so to the reader of the page."""
