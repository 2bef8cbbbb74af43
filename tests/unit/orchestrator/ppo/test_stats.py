"""The metrics of a batch of experience."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from orchestrator.errors import TetrarchError
from orchestrator.ppo.moments import Moments
from orchestrator.ppo.stats import distinct_windows, explained_variance, flat_groups
from tests.unit.orchestrator.ppo.test_experience import BETA, make_ppo, make_scored, naive_rewards
from tests.unit.orchestrator.ppo.whole_batch import to_experience


def test_stats_against_a_loop() -> None:
    scored = make_scored()
    experience, stats = to_experience(scored, BETA, make_ppo())
    mask = scored.rollouts.response_mask
    kl = [(scored.old_logprobs - scored.reference_logprobs)[row][mask[row]].tolist() for row in range(4)]
    gaps = [abs(float(x)) for x in (scored.rollouts.rollout_logprobs - scored.old_logprobs)[mask]]
    assert stats.metrics() == pytest.approx(
        {
            "score/mean": 2.5,
            "score/std": 1.25**0.5,
            "reward/mean": sum(sum(row) for row in naive_rewards(scored, [1.0, 2.0, 3.0, 4.0])) / 4,
            "objective/kl": sum(sum(row) for row in kl) / 4,
            "objective/kl_per_token": sum(sum(row) for row in kl) / 17,
            "advantage/mean": experience.actor.advantages[mask].mean().item(),
            "advantage/std": experience.actor.advantages[mask].std(correction=0).item(),
            "value/explained_variance": 1
            - (
                experience.actor.advantages[mask].var(correction=0) / experience.critic.returns[mask].var(correction=0)
            ).item(),
            "response/length_mean": 17 / 4,
            "response/length_p50": 4.0,  # of 1, 3, 5, 8
            "response/length_p90": 5 + 0.7 * 3,
            "response/length_p99": 5 + 0.97 * 3,
            "response/length_max": 8.0,
            "prompt/length_mean": 10 / 4,
            "response/turns_mean": 1.0,
            "response/truncated_fraction": 0.5,
            "response/repeated_fraction": repeated(scored.rollouts.token_ids, mask),
            "engine/logprob_gap_mean": sum(gaps) / 17,
            "engine/logprob_gap_max": max(gaps),
        },
        abs=1e-5,
    )
    assert all(type(value) is float for value in stats.metrics().values())


def test_named_numbers_have_mean_and_deviation() -> None:
    scored = make_scored()
    named = [{"reward/polite": float(row), "score/a": 1.0} for row in range(4)]
    counted = [{"environment/tries": 2.0 * row} for row in range(4)]
    told = replace(scored, rollouts=replace(scored.rollouts, counted=counted), named=named)
    plain, metrics = (to_experience(one, BETA, make_ppo())[1].metrics() for one in (scored, told))
    assert {key: value for key, value in metrics.items() if key not in plain} == pytest.approx(
        {
            **{"reward/polite/mean": 1.5, "reward/polite/std": 1.25**0.5, "score/a/mean": 1.0, "score/a/std": 0.0},
            **{"environment/tries/mean": 3.0, "environment/tries/std": 5.0**0.5},
        }
    )
    missing = replace(told, named=[*named[:2], {"score/a": 1.0}, named[3]])
    said = r"the reward has given no number polite for response 2 of the batch \(prompt 'p'\), but for others; give one"
    with pytest.raises(TetrarchError, match=said):
        to_experience(missing, BETA, make_ppo())


def repeated(token_ids: Tensor, generated: Tensor) -> float:
    """Share of all sequences of four generated tokens that a loop has seen before in their response."""
    all_sequences = []
    for row, mask in zip(token_ids.tolist(), generated.tolist(), strict=True):
        tokens = [token for token, own in zip(row, mask, strict=True) if own]
        all_sequences.append([tuple(tokens[place : place + 4]) for place in range(len(tokens) - 3)])
    return 1 - sum(len(set(own)) for own in all_sequences) / sum(map(len, all_sequences))


def share_repeated(token_ids: Tensor, generated: Tensor) -> float:
    windows, distinct = distinct_windows(token_ids, generated)
    return 1 - distinct / windows if windows else 0.0


def test_repeated_text_is_what_a_loop_counts() -> None:
    torch.manual_seed(1)
    for tokens in (2, 5, 100_000):
        ids = torch.randint(tokens, (4, 60)) + 50_000
        mask = torch.rand(4, 60) < 0.8
        assert share_repeated(ids, mask) == pytest.approx(repeated(ids, mask))


def test_repeated_text_has_known_values() -> None:
    said = torch.tensor([[7, 7, 7, 7, 7, 7], [1, 2, 3, 4, 5, 6]])
    everything = torch.ones(2, 6, dtype=torch.bool)
    assert share_repeated(said, everything) == pytest.approx(2 / 6)
    for rows in (0, 1, 2):
        for width in range(4):
            few = share_repeated(said[:rows, :width], everything[:rows, :width])
            assert few == 0.0, "too short to repeat anything"


def test_groups_without_spread() -> None:
    scores = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 2.1], [1e6, 1e6 + 1]])
    assert flat_groups(scores.double()) == 0.75
    _, stats = to_experience(make_scored(), BETA, make_ppo(), responses_per_prompt=2)
    assert stats.flat_groups == 0.0 and stats.metrics()["score/flat_groups"] == 0.0


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert variance_explained(returns, returns) == 1.0
    assert variance_explained(torch.zeros(3), returns) == 0.0
    assert variance_explained(-returns, returns) == pytest.approx(-3.0)
    for value in (1.0, 0.1, -1e-7, 1e6 + 0.3):  # the mean of equal numbers may differ from them by rounding
        assert variance_explained(torch.rand(3001), torch.full((3001,), value)) == 0.0


def variance_explained(values: Tensor, returns: Tensor) -> float:
    return explained_variance(Moments.of(returns - values), Moments.of(returns))
