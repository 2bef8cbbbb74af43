"""Activations that layers compute again in the backward pass (`gradient_checkpointing`): a module flows in, changed."""

from __future__ import annotations

from torch import nn


def recompute(module: nn.Module, on: bool) -> None:
    """Whether the layers of `module` that can compute their activations again do so from here on.

    transformers' layers do only in training mode. Everything else stays in evaluation mode, where a model computes what
    it computes in a pass without gradient: routers of experts add noise in training mode (Mixtral's and Phi-MoE's
    `router_jitter_noise`, Phi-MoE's sampled experts), and then no ratio is 1 at first.
    """
    module.eval()
    for part in module.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.training = on
