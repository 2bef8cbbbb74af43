"""Finds the weights of an engine that differ from the trainer's: each matrix is multiplied by the same vector.

An engine multiplies with its own kernels, so the layout of its weight (packed, fused, transposed) does not matter, and
a product depends on the position of every number. The trainer's and an engine's products flow in, the names that differ
most flow out. It runs only after log-probabilities have shown a difference.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Products = dict[str, Tensor]
"""Name → the product of a matrix, float32 `[outputs]`, or the values of a vector; on the CPU."""


@dataclass(frozen=True, slots=True)
class EngineProducts:
    """The products of one worker of an engine."""

    products: Products
    """Products by vLLM's names of modules and parameters."""
    fused: dict[str, list[str]] = field(default_factory=dict)
    """Last part of a fused module's name (`qkv_proj`) → those of the layers that it combines, in their order."""


def trainer_products(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, turned: Container[str] = ()
) -> Products:
    """Products of tensors with the names and shapes of a checkpoint, rounded to `dtype`. Those that are `turned` are
    stored as `[inputs, outputs]`."""
    return {
        name: _product((tensor.t() if name in turned else tensor).to(dtype))
        for name, tensor in weights
        if tensor.dim() in (1, 2)
    }


@torch.no_grad()
def engine_products(model: nn.Module) -> EngineProducts:
    """Products of vLLM's `model`, which is whole in this process: linear layers, embeddings, heads and vectors.

    Experts are left out.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    products: Products = {}
    for name, layer in model.named_modules():
        own = layer.named_parameters(prefix=name, recurse=False)
        products |= {key: _product(parameter) for key, parameter in own if parameter.dim() == 1}
        if isinstance(layer, LinearBase | ParallelLMHead):
            inputs: int = layer.input_size if isinstance(layer, LinearBase) else layer.embedding_dim
            dtype = layer.params_dtype if isinstance(layer, LinearBase) else layer.weight.dtype
            vector = probe_vector(inputs).to(dtype=dtype, device=next(model.parameters()).device)
            answer = layer.quant_method.apply(layer, vector[None], bias=None)[0]
            products[f"{name}.weight"] = answer.float().cpu()
        elif isinstance(layer, VocabParallelEmbedding):
            products[f"{name}.weight"] = _product(layer.weight)
    return EngineProducts(products, dict(getattr(model, "packed_modules_mapping", {})))


def probe_vector(inputs: int) -> Tensor:
    """float32 `[inputs]`, the same everywhere: multiples of ½ up to ±1½, which no dtype rounds."""
    generator = torch.Generator().manual_seed(inputs)
    halves = torch.randint(1, 4, (inputs,), generator=generator) / 2
    return halves * (2 * torch.randint(2, (inputs,), generator=generator) - 1)


def _product(tensor: Tensor) -> Tensor:
    values = tensor.detach().float()
    return (values @ probe_vector(values.shape[1]).to(values.device) if values.dim() == 2 else values).cpu()


def differences(trainer: Mapping[str, Tensor], engine: EngineProducts) -> dict[str, float]:
    """Distance of an engine's products from the trainer's, relative to the norm, by the engine's names; largest first.

    Products without a counterpart of the same size on the other side are left out.
    """
    found = {}
    for name, answer in engine.products.items():
        parts = _counterparts(name, trainer, engine.fused)
        expected = torch.cat([trainer[part] for part in parts]) if parts else answer[:0]
        if len(expected) and len(expected) <= len(answer):  # an engine may pad the vocabulary
            length = max(float(expected.norm()), 1e-6)
            found[name] = float((answer[: len(expected)] - expected).norm()) / length
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _counterparts(name: str, trainer: Mapping[str, Tensor], fused: Mapping[str, Sequence[str]]) -> list[str]:
    if name in trainer:
        return [name]
    module, _, kind = name.rpartition(".")
    before, _, last = module.rpartition(".")
    parts = [f"{before}.{part}.{kind}" for part in fused.get(last, ())]
    return parts if all(part in trainer for part in parts) else []


def worst(trainer: Mapping[str, Tensor], engine: EngineProducts, tolerance: float) -> str:
    """One sentence for an error: the products that differ by more than `tolerance`, or that none of them does."""
    found = differences(trainer, engine)
    wrong = [(name, value) for name, value in found.items() if not value <= tolerance]
    if wrong:
        named = ", ".join(f"{name} ({value:.2g})" for name, value in wrong[:5])
        return f"Of {len(found)} tensors compared, {len(wrong)} differ; most, relative to their size: {named}"
    return f"None of the {len(found)} tensors compared differs (experts are not compared)"
