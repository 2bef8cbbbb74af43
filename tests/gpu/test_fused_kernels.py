"""Layers with fused kernels on a card, architecture by architecture, against the model's own in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roles.config.fused import FUSED_ARCHITECTURES
from roles.models.fused_kernels import fuse
from tests.gpu.test_kernels import error
from tests.integration.architectures import DENSE, config, random_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

CLOSE = 1e-4
"""Relative error (L2) in float32."""


@pytest.mark.parametrize("architecture", FUSED_ARCHITECTURES)
def test_fused_layers_compute_what_the_models_own_do(architecture: str) -> None:
    """Log-probabilities, and the gradients of all weights. Liger changes the architecture for the whole process."""
    configs = (config(name) for name in DENSE)
    model = random_model(next(it for it in configs if it.model_type == architecture)).cuda()
    own = results(model)
    assert fuse(model)
    fused = results(model)
    assert any(not torch.equal(fused[name], own[name]) for name in own), "nothing was fused"
    gaps = {name: error(fused[name], own[name]) for name in own}
    assert max(gaps.values()) < CLOSE, {name: gap for name, gap in gaps.items() if gap >= CLOSE}


def results(model: torch.nn.Module) -> dict[str, Tensor]:
    """By name. So many tokens that narrow norms of all heads take the kernel for many rows, as in real runs."""
    ids = torch.randint(3, 100, (64, 192), generator=torch.Generator().manual_seed(0)).cuda()
    model.zero_grad()
    logprobs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    logprobs[:, :-1].gather(-1, ids[:, 1:, None]).mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logprobs": logprobs.detach(), **gradients}
