"""The metrics of a batch of experience. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.errors import TetrarchError
from orchestrator.known_metrics import STATISTICS
from orchestrator.metrics import LENGTH_QUANTILES
from roles.batch import Scored
from roles.losses.kl_estimators import k1
from roles.measured import measured, metric

SEQUENCE = 4
"""Number of tokens in the sequences that are searched for repeated text."""
_PRIMES = (0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64, 0x165667B19E3779F9, 0x27D4EB2F165667C5)


@dataclass(frozen=True, slots=True)
class ExperienceStats:
    """Statistics of a batch before the update; `orchestrator.metrics` says what each metric means. Every standard
    deviation is the biased one (divided by n).

    *Trained* responses are all but those that `truncated: {type: mask}` leaves out; if none is left, their numbers are
    0.
    """

    response_length_quantiles: tuple[float, ...]
    """Generated tokens that the shares LENGTH_QUANTILES of the responses do not exceed."""
    named: dict[str, float]
    """Mean and standard deviation of the numbers that the run names itself, by the names of metrics."""
    score_mean: float = metric("score/mean")
    """Mean of the raw scores of all responses, without truncation penalties."""
    score_std: float = metric("score/std")
    flat_groups: float | None = metric("score/flat_groups")
    """None with one response to a prompt."""
    score_disagreement: float | None = metric("score/disagreement")
    """None without an ensemble."""
    reward_mean: float = metric("reward/mean")
    """Mean before whitening."""
    kl: float = metric("objective/kl")
    """Mean KL per response, in nats."""
    kl_per_token: float = metric("objective/kl_per_token")
    advantage_mean: float = metric("advantage/mean")
    """Mean over the trained tokens, before whitening."""
    advantage_std: float = metric("advantage/std")
    explained_variance: float = metric("value/explained_variance")
    """Explained variance over the trained tokens, before the update; 0 if the returns do not vary."""
    response_length_mean: float = metric("response/length_mean")
    prompt_length_mean: float = metric("prompt/length_mean")
    turns_mean: float = metric("response/turns_mean")
    """Mean number of runs of generated tokens in a response."""
    truncated_fraction: float = metric("response/truncated_fraction")
    repeated_fraction: float = metric("response/repeated_fraction")
    """Of all sequences of four tokens of the batch; 0 if there is none."""
    logprob_gap_mean: float | None = metric("engine/logprob_gap_mean")
    """Mean over the generated tokens; None where no log-probability of the actor is known."""
    logprob_gap_max: float | None = metric("engine/logprob_gap_max")

    def metrics(self) -> dict[str, float]:
        """Metrics by their names in `metrics.jsonl`."""
        return measured(self) | dict(zip(LENGTH_QUANTILES, self.response_length_quantiles, strict=True)) | self.named


def experience_stats(
    scored: Scored,
    trained: Tensor,
    rewards: Tensor,
    advantages: Tensor,
    returns: Tensor,
    responses_per_prompt: int = 1,
) -> ExperienceStats:
    """Statistics of a batch; `trained`, `rewards`, `advantages`, `returns`: `[batch, time]`, as in `to_experience`."""
    rollouts, generated = scored.rollouts, scored.rollouts.response_mask
    places = _places(generated)
    learned = places if trained is generated else _places(trained)
    kl = _at(places, k1(scored.old_logprobs, scored.reference_logprobs)).double()
    gap = _at(places, rollouts.rollout_logprobs - scored.old_logprobs).abs().double()
    advantage, target = _at(learned, advantages).double(), _at(learned, returns).double()
    scores = scored.scores.double()
    tokens = generated.sum(1).double()
    every = len(places)
    quantiles = torch.quantile(tokens, torch.tensor(list(LENGTH_QUANTILES.values()), dtype=torch.double))
    named = {name: (float(x.mean()), float(x.std(correction=0))) for name, x in named_numbers(scored).items()}
    return ExperienceStats(
        named={f"{name}/{part}": x for name, both in named.items() for part, x in zip(STATISTICS, both, strict=True)},
        score_mean=float(scores.mean()),
        score_std=float(scores.std(correction=0)),
        flat_groups=flat_groups(scores.view(-1, responses_per_prompt)) if responses_per_prompt > 1 else None,
        score_disagreement=float(scored.disagreement.mean()) or None,
        reward_mean=mean(rewards.sum(1, dtype=torch.float64)[trained.any(1)]),
        kl=float(kl.sum()) / len(scored),
        kl_per_token=float(kl.mean()),
        advantage_mean=mean(advantage),
        advantage_std=mean((advantage - advantage.mean()).square()) ** 0.5,
        explained_variance=explained_variance(_at(learned, scored.values).double(), target),
        response_length_mean=every / len(scored),
        response_length_quantiles=tuple(quantiles.tolist()),
        prompt_length_mean=float(rollouts.lengths.sum() - every) / len(scored),
        turns_mean=float((generated[:, 1:] & ~generated[:, :-1]).sum()) / len(scored),
        truncated_fraction=float((~rollouts.finished).double().mean()),
        repeated_fraction=repeated_fraction(rollouts.token_ids, generated),
        logprob_gap_mean=float(gap.mean()),
        logprob_gap_max=float(gap.max()),
    )


def _places(mask: Tensor) -> Tensor:
    """Where a mask is True, in the flattened tensor: looked for once for all tensors that are read there."""
    return mask.flatten().nonzero().squeeze(1)


def _at(places: Tensor, tensor: Tensor) -> Tensor:
    return tensor.flatten()[places]


def named_numbers(scored: Scored) -> dict[str, Tensor]:
    """Name, such as `reward/polite` → float64 `[batch]`. TetrarchError if a response lacks a name that another has."""
    rows = [own | said for own, said in zip(scored.rollouts.counted, scored.named, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row)
    for number, row in enumerate(rows):
        lacks = next((name for name in names if name not in row), None)
        if lacks is not None:
            group, _, name = lacks.partition("/")
            raise TetrarchError(
                f"the {group} has given no number {name} for response {number} of the batch (prompt "
                f"{scored.rollouts.prompts[number][:60]!r}), but for others; give one for every response, such as 0"
            )
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names}


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) of two flat tensors; 0 if the returns do not vary."""
    if not len(returns):
        return 0.0
    total = float(returns.var(correction=0))
    return 1.0 - float((returns - values).var(correction=0)) / total if total > 0 else 0.0


def flat_groups(scores: Tensor) -> float:
    """Share of the rows of `[prompts, responses]` in which all scores are the same, up to rounding."""
    low, high = scores.amin(1), scores.amax(1)
    return float(torch.isclose(low, high, rtol=1e-5, atol=1e-8).double().mean())


def repeated_fraction(token_ids: Tensor, generated: Tensor) -> float:
    """Share of the sequences of four generated tokens that have occurred before in the same response, as in Welleck et
    al. (arXiv 1908.04319), of all of the batch; 0 if there is none.

    Args:
        token_ids: int64 `[batch, time]`.
        generated: bool `[batch, time]`.
    """
    tokens = token_ids.numpy()[generated.numpy()]
    hashes = np.zeros(len(tokens), np.int64)  # modulo 2^64: equal for equal windows, and hardly else
    for place, prime in enumerate(_PRIMES):
        hashes[: max(len(tokens) - place, 0)] += prime * tokens[place:]
    total = distinct = first = 0
    for count in generated.sum(1).tolist():
        windows = np.sort(hashes[first : first + max(count - SEQUENCE + 1, 0)])
        total += len(windows)
        distinct += int((windows[1:] != windows[:-1]).sum()) + bool(len(windows))
        first += count
    return 1.0 - distinct / total if total else 0.0


def mean(x: Tensor) -> float:
    return float(x.mean()) if x.numel() else 0.0
