"""The running mean of weights that ZeRO has not sharded; `tests/integration/test_sharded.py` has the sharded ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from roles.errors import RoleError
from roles.zero.average import Average


def test_it_follows_the_weights_slowly_and_survives_a_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    expected = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    average = Average(model, 0.9, torch.device("cpu"))
    for number in range(5):
        if number == 3:
            average.save(tmp_path / "average.safetensors")
            average = Average(model, 0.9, torch.device("cpu"))
            average.load(tmp_path / "average.safetensors")
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


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RoleError, match="written without ema_decay"):
        Average(nn.Linear(1, 1), 0.9, torch.device("cpu")).load(tmp_path / "average.safetensors")
