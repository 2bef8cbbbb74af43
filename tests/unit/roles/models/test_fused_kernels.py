"""What Liger puts in place of an architecture's layers, with plain PyTorch in place of its kernels, which need a GPU.

tests/gpu/test_fused_kernels.py runs the kernels themselves.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from liger_kernel.transformers import geglu, relu_squared, rms_norm, rope, swiglu
from torch import Tensor
from torch.nn import functional as F

from roles.config.models import FUSED_ARCHITECTURES
from roles.models.fused_kernels import fuse
from tests.integration.architectures import DENSE, MIXTURES, config, random_model


def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, mode: str, *_: Any) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (weight + offset) * scaled.to(x.dtype) if mode == "llama" else (scaled * (weight + offset)).to(x.dtype)


def rotate(name: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **options: Any) -> tuple[Tensor, Tensor]:
    assert name == "rope" and not options
    cos, sin = cos[:, None], sin[:, None]

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return turned(q), turned(k)


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of those that were called."""
    called: set[str] = set()

    def put(module: Any, name: str, function: Any) -> None:
        def noted(*arguments: Any, **options: Any) -> Any:
            called.add(name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, SimpleNamespace(apply=noted) if name.startswith("Liger") else noted)

    put(rms_norm, "LigerRMSNormFunction", norm)
    put(rope, "dispatch", rotate)
    put(swiglu, "LigerSiLUMulFunction", lambda gate, up, gain=1.0, scale=1.0: F.silu(gate * gain) * up * scale)
    put(geglu, "LigerGELUMulFunction", lambda gate, up: F.gelu(gate, approximate="tanh") * up)
    put(relu_squared, "LigerReLUSquaredFunction", lambda x: F.relu(x).square())
    return called


@pytest.mark.parametrize("architecture", FUSED_ARCHITECTURES)
def test_an_architecture_computes_what_it_did(
    architecture: str, plain_kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = (config(name) for name in {**DENSE, **MIXTURES})
    model = random_model(next(it for it in configs if it.model_type == architecture)).eval()
    own = results(model)
    assert not plain_kernels
    module = vars(sys.modules[type(model).__module__])
    for name, value in list(module.items()):
        monkeypatch.setitem(module, name, value)  # Liger changes them
    assert fuse(model)
    fused = results(model)
    assert plain_kernels, "nothing was fused"
    for name, value in own.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_other_architectures_stay_as_they_are(plain_kernels: set[str]) -> None:
    model = random_model(config("GPT2")).eval()
    own = results(model)
    assert not fuse(model)
    assert torch.equal(results(model)["logprobs"], own["logprobs"])
    assert not plain_kernels


def results(model: Any) -> dict[str, Tensor]:
    """Log-probabilities and gradients, by name."""
    ids = torch.randint(3, 100, (2, 48), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    logprobs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    logprobs[:, :-1].gather(-1, ids[:, 1:, None]).mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logprobs": logprobs.detach(), **gradients}
