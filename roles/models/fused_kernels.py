"""A model made ready for a GPU: norms, rotary embedding and gated activations as one kernel each, the head compiled.

The fused kernels are Liger's (Hsu et al., arXiv 2410.10989). What they compute is what transformers' layers compute,
but for rounding. A process that has fused one model builds all later ones of that architecture with them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from roles.config.fused import is_fusible
from roles.errors import ModelError
from roles.models.scoring_head import compile_head

KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
"""Of Liger's arguments; its losses are not wanted: the heads of `roles.models` give log-probabilities."""


def prepare_for_card(module: Any, dtype: torch.dtype, *, fused: bool, trained: bool) -> None:
    """Fused kernels in the layers, if they are wanted, and a compiled head (of logits of `dtype`). `module` is one of
    those of `roles.models.networks`."""
    if fused:
        print("layers:", "fused kernels" if fuse(module.model) else "as in transformers")
    if getattr(module, "scores_in_blocks", False):
        compile_head(dtype, trained=trained)


def fuse(model: PreTrainedModel) -> bool:
    """Give the layers of `model` fused kernels, in place. False, and nothing is changed, if there are none for its
    architecture or activation. ModelError if there are, and Liger is not installed."""
    if not (is_fusible(model.config.to_dict()) and type(model).__module__.startswith("transformers.models.")):
        return False
    if not is_liger_kernel_available():
        raise ModelError(
            "fused_kernels needs the package liger-kernel, which is not installed here; run `make setup EXTRA=gpu`, or "
            "set fused_kernels: false"
        )
    # Of its backbone: Liger knows no classifiers of some architectures.
    apply_liger_kernel(model.base_model, {**KERNELS, "cross_entropy": False, "fused_linear_cross_entropy": False})
    return True
