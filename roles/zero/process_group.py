"""Joins a rank to the process group of its role: a device flows in, DeepSpeed with that group flows out.

The rank's place in the group comes from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from typing import Any

import torch

from roles.zero.host_heap import bound_kernel_caches

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""Time after which a rank that waits for its peers gives up. It is longer than the driver's deadlines, which name the
late rank; in milliseconds it fits 32 bits, as the system's `poll` needs."""


def join(device: str) -> Any:
    """DeepSpeed, with this process in its group. On CPU it compiles no operators."""
    if device == "cpu":
        # DeepSpeed reads these when it is imported; without them it looks for accelerators and compiles unused
        # operators.
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        os.environ["LOCAL_SIZE"] = os.environ["WORLD_SIZE"]
        bound_kernel_caches()
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device == "cpu":
        # The table of operators to compile. If it is empty, no compiler is started; gloo carries the collectives.
        deepspeed.ops.__compatible_ops__ = {}
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "gloo" if device == "cpu" else "nccl"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT)
    return deepspeed
