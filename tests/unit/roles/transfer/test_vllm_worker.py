"""What vLLM's workers do with the weights of a push, on stand-ins for its layers."""

from __future__ import annotations

import torch
from torch import nn

from roles.transfer.vllm_worker import keep_biases


class Head(nn.Module):
    """As vLLM's head: a bias may be made later."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)
        if biased:
            self._register_bias()

    def _register_bias(self) -> None:
        self.bias = nn.Parameter(torch.zeros(3))


def test_a_push_loads_into_the_bias_that_a_head_has() -> None:
    model = nn.ModuleDict({"biased": Head(True), "plain": Head(False), "layer": nn.Linear(2, 2)})
    biased, plain = model["biased"], model["plain"]
    held = biased.bias
    keep_biases(model)
    biased._register_bias()  # type: ignore[operator]
    plain._register_bias()  # type: ignore[operator]
    assert biased.bias is held
    assert plain.bias is not None
