"""Which weights of an engine differ from the trainer's, however either side stores them."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roles.transfer.probe import EngineProducts, differences, probe_vector, trainer_products
from roles.zero.gather import turned_weights


def test_matrices_that_gpt2_stores_turned_are_compared_as_the_engine_multiplies_with_them() -> None:
    """A square one and one that is wider than high: both could be taken for matrices of linear layers."""
    trainer = nn.ModuleDict({"c_proj": Conv1D(8, 8), "c_attn": Conv1D(24, 8), "plain": nn.Linear(8, 24)})
    turned = turned_weights(trainer)
    assert turned == {"c_proj.weight", "c_attn.weight"}
    held = {
        name: parameter.detach().t() if name in turned else parameter.detach()
        for name, parameter in trainer.named_parameters()
    }
    answers = {name: matrix @ probe_vector(8) for name, matrix in held.items() if matrix.dim() == 2}
    given = trainer_products(trainer.named_parameters(), torch.float32, turned)
    found = differences(given, EngineProducts(answers))
    assert found.keys() == answers.keys() and max(found.values()) < 1e-6
    assert (
        differences(given, EngineProducts({**answers, "c_attn.weight": 2 * answers["c_attn.weight"]}))["c_attn.weight"]
        > 0.9
    )
