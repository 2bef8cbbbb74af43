"""Metrics under the names that boards made for other frameworks plot. Pure.

Each alias is the same number as the metric behind it. TRL's older PPOTrainer logs `ppo/…`, its newer one `objective/…`,
`policy/…`, `loss/…` and `val/…`; OpenRLHF logs `train/…`, where `train/kl` is the mean over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

ALIASES = {
    "ppo/mean_scores": "score/mean",
    "ppo/std_scores": "score/std",
    "ppo/policy/approxkl": "policy/approx_kl",
    "ppo/policy/clipfrac": "policy/clip_fraction",
    "ppo/policy/entropy": "objective/entropy",
    "ppo/loss/policy": "policy/loss",
    "ppo/loss/value": "value/loss",
    "ppo/val/var_explained": "value/explained_variance",
    "ppo/val/clipfrac": "value/clip_fraction",
    "objective/kl_coef": "kl/coefficient",
    "objective/scores": "score/mean",
    "objective/rlhf_reward": "reward/mean",
    "policy/approxkl_avg": "policy/approx_kl",
    "policy/clipfrac_avg": "policy/clip_fraction",
    "policy/entropy_avg": "objective/entropy",
    "loss/policy_avg": "policy/loss",
    "loss/value_avg": "value/loss",
    "val/clipfrac_avg": "value/clip_fraction",
    "train/kl": "objective/kl_per_token",
    "train/reward": "score/mean",
    "train/response_length": "response/length_mean",
    "train/policy_loss": "policy/loss",
    "train/critic_loss": "value/loss",
    "train/actor_lr": "lr/actor",
}
"""Alias → metric. `objective/kl` and `objective/entropy` have TRL's names already."""


def with_aliases(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, and those of them that have an alias once more."""
    return {**metrics, **{alias: metrics[name] for alias, name in ALIASES.items() if name in metrics}}
