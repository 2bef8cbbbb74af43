"""LoRA adapters (Hu et al., arXiv 2106.09685) on a transformers model, made by PEFT.

A model flows in and gets adapters beside some of its linear layers: `W·x` becomes `W·x + alpha/rank · B·A·x`, with W
frozen. Everything outside (engines, saved folders, fingerprints) uses the names and shapes that a model has without
adapters; `plain_name` and `merged` give them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from roles.config.models import LoraConfig
from roles.errors import ModelError

LINEAR = (nn.Linear.forward, Conv1D.forward)
"""What a linear layer computes: not the routers that inherit from one. A `Conv1D` is GPT-2's, whose weight is stored as
`[inputs, outputs]`."""

ADAPTER = "default"
"""PEFT's name of an adapter that was given no name."""


WHOLE = "whole"
"""Name of the model inside the module that PEFT gets."""


def adapt(model: PreTrainedModel, config: LoraConfig, seed: int = 0) -> None:
    """Put adapters into `model`, and freeze everything else except a value head.

    B is 0 and A is drawn from `seed`, so that the model computes at first what it computed before.

    Raises:
        ModelError: a target is no linear layer of the model.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = _targets(model, config)
    turned = isinstance(model.get_submodule(targets[0]), Conv1D)
    # Of a transformers model PEFT would take `gate_proj` and the like, wherever they are, for its fused experts.
    plain = nn.ModuleDict({WHOLE: model})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            PeftConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=[f"{WHOLE}.{name}" for name in targets],
                lora_dropout=0.0,
                fan_in_fan_out=turned,
            ),
            plain,
        )
    # ZeRO-3 frees the weights of a layer whose inputs need no gradient before the backward pass has used them.
    model.enable_input_require_grads()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or name.startswith("score."))


def adapter_parameters(model: PreTrainedModel, config: LoraConfig) -> int:
    """Number of parameters that `adapt` would add; only shapes are read. Raises as `adapt` does."""
    modules = dict(model.named_modules())
    layers: list[Any] = [modules[name] for name in _targets(model, config)]
    return sum(config.rank * sum(layer.weight.shape) for layer in layers)


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that get an adapter. Heads get none."""
    inside = f"{model.base_model_prefix}."
    linear = [n for n, m in model.named_modules() if type(m).forward in LINEAR and n.startswith(inside)]
    if config.targets == "all-linear":
        wanted = {name: [name] for name in linear} or {"all-linear": []}
    else:
        wanted = {target: [n for n in linear if f".{n}".endswith(f".{target}")] for target in config.targets}
    unknown = [target for target, found in wanted.items() if not found]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none at all"
        raise ModelError(
            f"lora.targets: {', '.join(unknown)} is no linear layer of this {type(model).__name__}; it has {known}"
        )
    return sorted({name for found in wanted.values() for name in found})


def state_name(config: LoraConfig | None) -> str:
    """Name of the folder of a training state. That of adapters differs between ranks, alphas and sets of targets."""
    if config is None:
        return "state"
    targets = hashlib.sha256(repr(config.targets).encode()).hexdigest()[:8]
    return f"adapters-rank{config.rank}-alpha{config.alpha:g}-{targets}"


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name of a parameter in the model without adapters."""
    return name.replace(".base_layer.", ".")


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """Plain name of a weight → its layer, for those that have an adapter."""
    return {f"{name}.weight": layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


def adapter_of(layer: Any) -> list[nn.Parameter]:
    """The parameters A and B of an adapted layer."""
    return [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]


def merged(weight: Tensor, layer: Any) -> Tensor:
    """`W + alpha/rank · B·A` in W's dtype; `weight` is the whole W, which is not changed."""
    a, b = (parameter.data.float() for parameter in adapter_of(layer))
    first, second = (a.t(), b.t()) if layer.fan_in_fan_out else (b, a)
    whole: Tensor = torch.addmm(weight.float(), first, second, alpha=layer.scaling[ADAPTER])
    return whole.to(weight.dtype)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Context in which forward passes (without gradient) ignore the adapters."""
    layers = adapted_layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
