"""The critic and the reward model: their numbers, their heads, and folders that are refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from roles.errors import ModelError
from roles.losses.value_loss import value_loss
from roles.models.networks import ValueModel, _running_mean, _zero
from roles.packing import pack
from tests.unit.roles.models.test_networks import (
    ARCHITECTURES,
    LENGTHS,
    PACKED,
    TOKENS,
    VOCAB,
    compare_gradients,
    write,
)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"granite-scaled"}))  # it has no classifier
def test_value_equals_each_sequence_cut_there(tmp_path: Path, architecture: str) -> None:
    """transformers reads the classifier at a sequence's last token: so value t is that of the sequence cut after t."""
    alone = write(tmp_path, architecture, AutoModelForSequenceClassification, num_labels=1)
    critic = ValueModel.load(tmp_path).train()
    values = critic(packed=PACKED, positions=torch.arange(len(PACKED.token_ids)))
    wanted = torch.cat(
        [
            alone(TOKENS[r : r + 1, : t + 1]).logits[0]
            for r, length in enumerate(LENGTHS.tolist())
            for t in range(length)
        ]
    )
    torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-5)
    weight = torch.randn(len(wanted), generator=torch.Generator().manual_seed(2))
    (values * weight).sum().backward()
    (wanted * weight).sum().backward()
    compare_gradients(critic.model, alone)


def test_a_new_head_is_drawn_as_asked_and_the_body_kept(tmp_path: Path) -> None:
    body = write(tmp_path, "llama-grouped", hidden_size=256)
    first, again, other = (ValueModel.load(tmp_path, new_head_seed=seed).model for seed in (5, 5, 6))
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.score.weight.std().item() == pytest.approx(1 / math.sqrt(257), rel=0.15)
    assert torch.equal(first.model.layers[1].mlp.up_proj.weight, body.model.layers[1].mlp.up_proj.weight)
    assert first.config.initializer_range == body.config.initializer_range
    state = torch.random.get_rng_state()
    ValueModel.load(tmp_path, new_head_seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"granite-scaled"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_critics_new_head_says_zero_everywhere(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    write(tmp_path, architecture)
    critic = ValueModel.load(tmp_path, dtype=dtype, zero_head=True)
    values = critic(packed=PACKED, positions=torch.arange(len(PACKED.token_ids)))
    assert (values == 0).all()
    values.sum().backward()
    assert critic.model.score.weight.grad is not None and critic.model.score.weight.grad.abs().max() > 0


def test_a_trained_head_stays_as_it_is_in_a_critic(tmp_path: Path) -> None:
    trained = write(tmp_path, "llama-grouped", AutoModelForSequenceClassification, num_labels=1)
    assert torch.equal(ValueModel.load(tmp_path, zero_head=True).model.score.weight, trained.score.weight)


def test_of_a_sharded_head_the_ranks_own_share_is_zeroed() -> None:
    layer = nn.Linear(4, 1, bias=False)
    share = torch.ones(2)
    layer.weight.data, layer.weight.ds_tensor = torch.empty(0), share  # type: ignore[assignment]
    _zero(layer)
    assert (share == 0).all()


def squared_errors(critic: ValueModel, steps: int = 8) -> list[float]:
    """Mean squared error of the critic on fresh sequences at each PPO step, before it is trained on them.

    A return is 1 at odd tokens and 0 at even ones: as those of a function that counts what is right, in 0 to 1.
    """
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-4)
    errors = []
    for _ in range(steps):
        tokens = torch.randint(3, VOCAB, (16, 12), generator=generator)
        given = {"packed": pack(tokens, torch.full((16,), 12)), "positions": torch.arange(tokens.numel())}
        returns = (tokens % 2).float().flatten()
        with torch.no_grad():
            old = critic(**given)
        errors.append(float((old - returns).square().mean()))
        for _ in range(4):
            losses, _ = value_loss(critic(**given), old, returns, 0.2)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    return errors


def test_a_critic_that_starts_at_zero_is_ahead_of_one_whose_head_is_drawn(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped", hidden_size=64)
    zero = squared_errors(ValueModel.load(tmp_path, zero_head=True))
    drawn = squared_errors(ValueModel.load(tmp_path, new_head_seed=0))
    assert all(now < 0.7 * then for now, then in zip(zero, drawn, strict=True)), (zero, drawn)
    assert zero[0] < 0.6 and zero[-1] < 0.8 * zero[0]


def test_a_folder_without_a_head_is_no_reward_model(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped")
    with pytest.raises(ModelError, match=r"score\.weight.*tetrarch reward"):
        ValueModel.load(tmp_path)


def test_a_classifier_of_two_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped", AutoModelForSequenceClassification, num_labels=2)
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        ValueModel.load(tmp_path)


def test_a_mean_model_gives_the_mean_of_the_numbers_so_far(tmp_path: Path) -> None:
    write(tmp_path, "llama-tied")
    last, mean = (ValueModel.load(tmp_path, new_head_seed=1, pooling=pooling) for pooling in ("last", "mean"))
    everywhere = torch.arange(len(PACKED.token_ids))
    numbers, means = (model(packed=PACKED, positions=everywhere) for model in (last, mean))
    for first, end in itertools.pairwise(PACKED.starts.tolist()):
        for place in range(first, end):
            assert float(means[place].detach()) == pytest.approx(
                float(numbers[first : place + 1].detach().mean()), abs=1e-5
            )
    mean.model.save_pretrained(tmp_path / "saved")
    assert ValueModel.load(tmp_path / "saved").score_pooling == "mean"


def test_a_running_mean_knows_nothing_of_its_neighbours() -> None:
    """To the last bit, and also beside a sequence that is not finite."""
    generator = torch.Generator().manual_seed(0)
    alone = 30 * torch.randn(7, generator=generator)
    before, after = 1e6 * torch.randn(4000, generator=generator), torch.full((3,), float("nan"))
    lengths = torch.tensor([4000, 3, 7])
    stream = torch.cat([before, after, alone])
    packed = pack(torch.zeros(3, 4000, dtype=torch.long), lengths)
    expected = alone.cumsum(0) / torch.arange(1, 8)
    assert torch.equal(_running_mean(stream, packed)[-7:], expected)
