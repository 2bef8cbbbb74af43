"""A transformers model → its Hugging Face folder: weights and configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

GENERATION = "generation_config.json"


def write_model(model: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """As `save_pretrained`, with `weights` in place of the model's own. `generation_config.json` says what the model
    was loaded with: transformers loads some that it refuses to save, such as a temperature without `do_sample`."""
    if not model.can_generate():
        model.save_pretrained(folder, state_dict=weights)
        return
    generation, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = generation
    generation.to_json_file(folder / GENERATION, keys_to_pop=["compile_config"])  # as GenerationConfig.save_pretrained
