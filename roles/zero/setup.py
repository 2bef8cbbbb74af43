"""Everything that a sharded model is built from, as one value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from roles.config.models import LoraConfig, OptimizerConfig, ZeroConfig
from roles.config.section import Dtype


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """Everything that a sharded model is built from, the same on every rank."""

    model_path: str
    """Path of a Hugging Face folder."""
    device: str
    """`cpu` or `cuda`."""
    dtype: Dtype
    seed: int
    zero: ZeroConfig
    micro_batch_tokens: int
    shares_card: bool = False
    """Whether other processes use the same GPU; memory that torch keeps in reserve is then released between calls."""
    gradient_checkpointing: bool = False
    fused_kernels: bool = False
    """Fused kernels in the layers, on GPUs (`roles.models.fused_kernels`)."""
    optimizer: OptimizerConfig | None = None
    """The optimizer; None for a frozen model."""
    optimizer_steps: int = 0
    """Optimizer steps of the whole run, where the schedule ends."""
    ema_decay: float | None = None
    """Decay of a running mean of the trained weights; None if none is kept."""
    lora: LoraConfig | None = None
    """Train only adapters and a value head; None: train all weights."""
    freeze_backbone: bool = False
    """Train only what is on top of the transformer (a value head)."""
    trust_remote_code: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype
