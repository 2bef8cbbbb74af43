"""The header of a GGUF file: its keys and the names and shapes of its tensors, without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers.integrations.gguf import read_gguf_metadata

from roles.errors import ModelError


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file; `tokenizer.ggml.tokens` is the number of tokens here."""

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header; ModelError if the file is not a GGUF file or is one part of a split one."""
        try:
            metadata, tensors = read_gguf_metadata(str(path))
        except Exception as error:  # a cut or missing header: the reader fails with any exception
            raise ModelError(f"{path} is not a whole GGUF file ({error}); fetch it anew") from None
        parts = metadata.get("split.count", 1)
        if parts > 1:
            raise ModelError(
                f"{path} is part {metadata.get('split.no', 0) + 1} of {parts} of a split file (split.count={parts}); "
                "make one file of them: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
            )
        kind = metadata.get("general.type", "model")
        if kind != "model":
            raise ModelError(f"{path} holds a {kind}, not a model (general.type); name a model's file")
        return cls(path, metadata["general.architecture"], metadata, tensors)

    @property
    def said(self) -> dict[str, Any]:
        """The model's own keys in the file, without the architecture in front."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): v for key, v in self.metadata.items() if key.startswith(prefix)}

    def lost(self, what: str) -> ModelError:
        """The error for a setting of the file that would be lost in the conversion."""
        return ModelError(
            f"{self.path} says {what}, which cannot be carried over to a Hugging Face folder; use the model's own "
            "Hugging Face folder"
        )
