"""Keeps what transformers prints while it loads a model off the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Context without progress bars and warnings. Exceptions pass."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
