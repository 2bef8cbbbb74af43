"""Moves the gradients and the optimizer of a ZeRO-3 model off the card between updates.

DeepSpeed's `offload_states` and `reload_states` move them. One effect is corrected here: it copies gradients to the
host and back although nothing reads them after a step.
"""

from __future__ import annotations

from typing import Any

import torch


def sleep(engine: Any) -> None:
    """Move optimizer states and float32 weights to pinned host memory, and free the gradients."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    gradients = engine.optimizer.grad_partitions_flat_buffer
    gradients.data = torch.zeros(1, dtype=gradients.dtype).expand(gradients.shape)  # one number stands for all
    engine.offload_states(include=[State.lp_grads], pin_memory=False)
    engine.offload_states(include=[State.optim_states, State.hp_params, State.contiguous_grad_buffer])


def wake(engine: Any, device: torch.device) -> None:
    """Move back what `sleep` has moved, if anything; gradients are zeros."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    if State.lp_grads not in engine.optimizer.offloaded_states:
        return
    gradients = engine.optimizer.grad_partitions_flat_buffer
    gradients.data = torch.zeros(gradients.shape, dtype=gradients.dtype, device=device)
    engine.reload_states()
