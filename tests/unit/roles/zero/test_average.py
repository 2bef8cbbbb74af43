"""The running mean of weights that ZeRO has not sharded; `tests/integration/test_sharded.py` has the sharded ones."""

from __future__ import annotations

import torch
from torch import nn

from roles.zero.average import Average


def test_it_follows_the_weights_slowly_and_survives_a_checkpoint() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    expected = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    average = Average(model, 0.9, torch.device("cpu"))
    for number in range(5):
        if number == 3:
            held = {name: mean for name, _, mean in average.held()}
            average = Average(model, 0.9, torch.device("cpu"))
            for name, _, mean in average.held():
                mean.copy_(held[name])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        average.update()
        for name, parameter in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().float()
    whole = dict(average.whole())
    for name, mean in expected.items():
        assert whole[name].dtype == torch.bfloat16
        torch.testing.assert_close(whole[name], mean.to(torch.bfloat16))
