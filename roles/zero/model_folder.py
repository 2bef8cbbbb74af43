"""Hugging Face folders of trained models: a model and its whole weights flow in, a folder flows out; or the state in a
checkpoint flows in, which needs neither ranks nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from roles.errors import RoleError
from roles.model_files.writing import write_model
from roles.models.lora import adapt, adapted_layers, merged, state_name
from roles.text.tokenizer import load_tokenizer
from roles.zero.gather import plain_parameters
from roles.zero.part_files import WEIGHT, PartFiles
from roles.zero.setup import ModelSetup

READABLE = 0o644
"""File mode of saved weights: safetensors lets only the owner read them, and a server often runs as another user."""


def write_folder(model: Any, weights: Mapping[str, Tensor], folder: Path, setup: ModelSetup) -> None:
    """Write a transformers model with other weights (by the names that it has without adapters): weights as
    safetensors, configuration and tokenizer."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    write_model(model, folder, {**weights, **buffers})
    load_tokenizer(setup.model_path, trust_remote_code=setup.trust_remote_code).save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(READABLE)


def open_state(folder: Path, setup: ModelSetup) -> PartFiles:
    """The files of a role's state in a checkpoint. Once they are open, they can be read even if they are removed."""
    state = folder / state_name(setup.lora)
    if not state.is_dir():
        raise RoleError(f"{folder} holds no {state.name}; name a whole checkpoint, of a role that was trained")
    return PartFiles(state)


def write_state_as_folder(module: Any, files: PartFiles, folder: Path, setup: ModelSetup) -> None:
    """Write the folder that `ShardedModel.save_model` would have written when the state was saved.

    Args:
        module: the role's module as it was before training, with the transformers model as its `.model`; it gets the
            trained weights.
    """
    model = module.model
    if setup.lora:
        adapt(model, setup.lora)
    for name, parameter in module.named_parameters():
        if setup.lora is None or parameter.requires_grad:  # else the weight is as in the model's own folder
            files.read(WEIGHT, name, 0, parameter.data.view(-1))
    adapters = adapted_layers(model)
    plain = ((name, parameter.data) for name, parameter in plain_parameters(model).items())
    weights = {name: merged(data, adapters[name]) if name in adapters else data for name, data in plain}
    write_folder(model, weights, folder, setup)
