"""What Liger puts in place of an architecture's layers, with plain PyTorch in place of its kernels, which need a GPU.

tests/gpu/test_fused_kernels.py runs the kernels themselves.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from liger_kernel.transformers import geglu, rms_norm, rope, swiglu
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from roles.config.fused import FUSED_ARCHITECTURES, is_fusible
from roles.errors import ModelError
from roles.models import fused_kernels
from roles.models.fused_kernels import fuse
from tests.integration.architectures import DENSE, config, random_model


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
    return called


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("architecture", FUSED_ARCHITECTURES)
def test_an_architecture_computes_what_it_did(
    architecture: str, kind: Any, plain_kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = (config(name) for name in DENSE)
    described = next(it for it in configs if it.model_type == architecture)
    if type(described) not in kind._model_mapping:
        pytest.skip("transformers has no classifier")
    model = random_model(described, kind).eval()
    own = results(model)
    assert not plain_kernels
    module = vars(sys.modules[type(model).__module__])
    for name, value in list(module.items()):
        monkeypatch.setitem(module, name, value)  # Liger changes them
    assert fuse(model)
    fused = results(model)
    gated = "LigerGELUMulFunction" if architecture.startswith("gemma") else "LigerSiLUMulFunction"
    assert plain_kernels == {"LigerRMSNormFunction", "dispatch", gated}
    for name, value in own.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_another_activation_is_not_replaced(plain_kernels: set[str]) -> None:
    described = config("Llama")
    described.hidden_act = "relu"
    model = random_model(described)
    assert not is_fusible(described.to_dict()) and not fuse(model)


def test_a_missing_liger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_kernels, "is_liger_kernel_available", lambda: False)
    with pytest.raises(ModelError, match=r"liger-kernel.*make setup EXTRA=gpu.*fused_kernels: false"):
        fuse(random_model(config("Llama")))


def test_other_architectures_stay_as_they_are(plain_kernels: set[str]) -> None:
    model = random_model(config("GPT2")).eval()
    own = results(model)
    assert not fuse(model)
    assert torch.equal(results(model)["said"], own["said"])
    assert not plain_kernels


def results(model: Any) -> dict[str, Tensor]:
    """What the model says and the gradients of its weights, by name."""
    ids = torch.randint(3, 100, (2, 48), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    said = model(input_ids=ids, use_cache=False).logits
    said.log_softmax(-1)[..., 0].mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"said": said.detach(), **gradients}
