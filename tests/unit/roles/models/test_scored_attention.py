"""Soft caps and sinks: packed, in blocks, as transformers computes them for each sequence alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from roles.models import scored_attention
from roles.models.networks import PolicyModel
from roles.packing import pack, right_padded
from tests.integration import architectures

LENGTHS = [40, 7, 23, 1]
"""The first is longer than the windows of both architectures."""


@pytest.mark.parametrize("block", [1 << 24, 2000, 1], ids=["whole", "blocks", "rows"])
@pytest.mark.parametrize("name", ["Gemma2", "GptOss"])
def test_log_probabilities_and_gradients_are_those_of_transformers(
    tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_attention, "BLOCK", block)
    torch.manual_seed(3)
    config = architectures.config(name)
    if name == "Gemma2":
        config.attn_logit_softcapping = 2.0  # one that matters for weights as small as these
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, config=AutoConfig.from_pretrained(tmp_path), attn_implementation="eager", dtype=torch.float32
    )
    policy = PolicyModel.load(tmp_path)
    rows = [torch.randint(3, 60, (length + 1,)).tolist() for length in LENGTHS]
    labels = torch.tensor([token for row in rows for token in row[1:]])
    expected = torch.cat(
        [
            plain(torch.tensor([row[:-1]])).logits[0].log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
            for row in rows
        ]
    )
    packed = pack(*right_padded([row[:-1] for row in rows]))
    found, _ = policy(packed=packed, positions=torch.arange(len(labels)), labels=labels, temperature=1.0)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    theirs = dict(plain.named_parameters())
    for parameter_name, parameter in policy.model.named_parameters():
        gradient = theirs[parameter_name].grad
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, atol=2e-3, rtol=1e-3, msg=parameter_name)


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, heads, 30, 16) for heads in (4, 2, 2)]
    options = {"softcap": 5.0, "sinks": torch.randn(4)}
    exact = scored_attention.scored_attention(*parts, None, 8, **options)
    half = scored_attention.scored_attention(*(part.bfloat16() for part in parts), None, 8, **options)
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0.03)
