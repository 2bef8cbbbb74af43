"""Compares the numbers of tied weights that a folder stores twice, such as a language model's head and its embedding.

Names of tied pairs and what the folder stores flow in; nothing flows out, or a ModelError. Weights are read in slices
until the first difference, and not at all where a pair is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open

from roles.errors import ModelError
from roles.model_files.weight_files import Stored

SLICE = 2**24
"""Numbers of each tensor that are in memory at a time."""


def refuse_untied(pairs: Iterable[tuple[tuple[str, Stored], tuple[str, Stored]]]) -> None:
    """Raise ModelError if two weights of a pair, each with its name, hold other numbers.

    transformers keeps both as they are stored, while vLLM may take one of them for both.
    """
    for (name, tied), (other, source) in pairs:
        if not _equal(name, tied, other, source):
            raise ModelError(
                f"config.json says tie_word_embeddings: true, but {name} and {other} hold different numbers, "
                "and programs differ in which they read; set tie_word_embeddings: false in config.json"
            )


def _equal(name: str, tied: Stored, other: str, source: Stored) -> bool:
    with ExitStack() as files:
        first, second = _opened(name, tied, files), _opened(other, source, files)
        rows = max(1, SLICE // math.prod(tied.shape[1:]))
        slices = (slice(start, start + rows) for start in range(0, tied.shape[0], rows))
        return all(torch.equal(first[part].float(), second[part].float()) for part in slices)


def _opened(name: str, stored: Stored, files: ExitStack) -> Any:
    """The tensor, whose numbers are read when a slice of it is taken."""
    if stored.file.suffix == ".safetensors":
        return files.enter_context(safe_open(stored.file, framework="pt")).get_slice(name)
    try:
        return torch.load(stored.file, map_location="cpu", weights_only=True, mmap=True)[name]
    except RuntimeError:  # a file of torch before 1.6 cannot be mapped
        return torch.load(stored.file, map_location="cpu", weights_only=True)[name]
