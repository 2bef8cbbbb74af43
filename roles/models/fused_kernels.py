"""Fused kernels in a model's layers: norms, rotary embedding and gated activations as one kernel each, on GPUs.

They are Liger's (Hsu et al., arXiv 2410.10989), which needs Triton and knows many architectures, not all. What they
compute is what transformers' layers compute, but for rounding.
"""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from roles.config.models import FUSED_ARCHITECTURES

KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
"""Of Liger's arguments; its losses are not wanted: the heads of `roles.models` give log-probabilities."""


def fuse(model: PreTrainedModel) -> bool:
    """Give the layers of `model` fused kernels, in place. False, and nothing is changed, where there is no Liger or
    the architecture is none of `FUSED_ARCHITECTURES`."""
    if model.config.model_type not in FUSED_ARCHITECTURES or not is_liger_kernel_available():
        return False
    apply_liger_kernel(model, {**KERNELS, "cross_entropy": False, "fused_linear_cross_entropy": False})
    return True
