"""DeepSpeed's settings: a ModelSetup flows in, the dictionary for DeepSpeed flows out.

Also says which modules ZeRO-3 gathers whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from roles.zero.setup import ModelSetup

CPU_BUCKET = 4_000_000
"""Numbers of gradients reduced at a time on CPU: 16 MB, which gloo moves fastest because they fit the caches."""

CARD_BUCKET = 200_000_000
"""Numbers of gradients reduced at a time on a GPU. ZeRO-3 keeps a buffer of this size all the time; DeepSpeed's
default is 500 million, 1 GB for each trained role on a card."""

CPU_WHOLE = 1000
"""Parameters with at most this many numbers (biases, norms) stay whole on every rank, on CPU."""


def deepspeed_config(setup: ModelSetup, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for `setup`."""
    on_cpu = setup.device == "cpu"
    # Stages 1 and 2 shard only gradients and optimizer state, which a frozen model does not have.
    stage = setup.zero.stage if setup.optimizer or setup.zero.stage == 3 else 0
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": not on_cpu}
    if setup.zero.offload_optimizer and setup.optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if setup.zero.offload_parameters and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if not on_cpu:
        zero["reduce_bucket_size"] = CARD_BUCKET
    else:
        # gloo reduces faster than it scatters. A linear layer of our own making saves memory that a host has.
        zero |= {"reduce_scatter": False, "reduce_bucket_size": CPU_BUCKET, "allgather_bucket_size": CPU_BUCKET}
        if stage == 3:
            zero |= {"stage3_prefetch_bucket_size": 0, "memory_efficient_linear": False}
            zero["stage3_param_persistence_threshold"] = CPU_WHOLE
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "steps_per_print": None,
        "zero_optimization": zero,
    }
    if setup.optimizer:
        settings["gradient_clipping"] = setup.optimizer.max_gradient_norm
    if setup.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
        if stage > 0:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def gather_by_layer(module: nn.Module) -> None:
    """Tell ZeRO-3 to gather whole decoder layers: one collective and one pair of hooks per layer, not per matrix."""
    from deepspeed.utils import set_z3_leaf_modules

    model: Any = module.model
    names = set(model._no_split_modules or ())
    kinds = {type(m) for m in module.modules() if type(m).__name__ in names}
    if kinds:
        set_z3_leaf_modules(module, sorted(kinds, key=lambda kind: kind.__name__))
