"""Decoder layers that keep keywords from their attention, and so the layout of packed sequences.

A transformers model flows in; the attention of its layers then gets the `layout` that the model is given.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

KEEPING = ("stablelm", "nemotron")
"""Model types of transformers 5.19 whose layers take keywords and do not pass them on."""


def pass_on_layout(model: PreTrainedModel) -> None:
    """Give the attention of each layer the layout of its layer, also when the layer is run again for its gradient."""
    if model.config.model_type not in KEEPING:
        return
    for layer in model.modules():
        if isinstance(attention := getattr(layer, "self_attn", None), nn.Module):
            held: dict[str, Any] = {}
            layer.register_forward_pre_hook(partial(_take, held), with_kwargs=True)
            attention.register_forward_pre_hook(partial(_give, held), with_kwargs=True)


def _take(held: dict[str, Any], layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    held["layout"] = kwargs.get("layout")


def _give(held: dict[str, Any], attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, **held}
