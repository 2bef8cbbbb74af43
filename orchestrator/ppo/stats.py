"""The metrics of a batch of experience. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from orchestrator.errors import TetrarchError
from orchestrator.known_metrics import STATISTICS
from orchestrator.metrics import LENGTH_QUANTILES
from orchestrator.ppo.moments import Moments
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


@dataclass(frozen=True, slots=True)
class TokenSums:
    """What the statistics need of the tokens of some rows; `+` gives that of several."""

    rows: int
    generated: int
    """Tokens."""
    read: int
    """Tokens of the rows, those of prompts and environments included."""
    turns: int
    """Runs of generated tokens."""
    kl: float
    """Of all generated tokens, nats."""
    gap: float
    """Distances of the engines' log-probabilities from the actor's, of all generated tokens."""
    widest: float
    """The largest of them."""
    rewards: Moments
    """Of a trained response, before whitening."""
    advantages: Moments
    """Of the trained tokens, before whitening."""
    returns: Moments
    """Of the trained tokens."""
    errors: Moments
    """Returns minus values of the trained tokens."""
    windows: int
    """Sequences of four generated tokens."""
    distinct: int
    """Those that have not occurred before in the same response."""

    def __add__(self, other: TokenSums) -> TokenSums:
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return TokenSums(**both | {"widest": max(self.widest, other.widest)})


class TokenCounts(NamedTuple):
    """Tokens of some rows."""

    lengths: Tensor
    """int64 `[batch]`: prompt and response."""
    generated: Tensor
    """int64 `[batch]`: those that the policy generated."""


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What the statistics need of each row."""

    generated: Tensor
    """int64 `[batch]`: tokens of the response that were generated."""
    finished: Tensor
    """bool `[batch]`."""
    scores: Tensor
    """float32 `[batch]`: the raw ones."""
    disagreement: Tensor
    """float32 `[batch]`."""
    named: dict[str, Tensor]
    """As of `named_numbers`."""

    @classmethod
    def of(cls, scored: Scored) -> Self:
        """Those of rows that are at hand."""
        rollouts, named = scored.rollouts, named_of(scored)
        return cls(rollouts.generated, rollouts.finished, scored.scores, scored.disagreement, named)


def token_sums(scored: Scored, trained: Tensor, rewards: Tensor, advantages: Tensor, returns: Tensor) -> TokenSums:
    """Those of some rows; `trained`, `rewards`, `advantages`, `returns`: `[batch, time]`."""
    rollouts, generated = scored.rollouts, scored.rollouts.response_mask
    places = _places(generated)
    learned = places if trained is generated else _places(trained)
    gap = _at(places, rollouts.rollout_logprobs - scored.old_logprobs).abs().double()
    target = _at(learned, returns).double()
    windows, distinct = distinct_windows(rollouts.token_ids, generated)
    return TokenSums(
        rows=len(scored),
        generated=len(places),
        read=int(rollouts.lengths.sum()),
        turns=int((generated[:, 1:] & ~generated[:, :-1]).sum()),
        kl=float(_at(places, k1(scored.old_logprobs, scored.reference_logprobs)).double().sum()),
        gap=float(gap.sum()),
        widest=float(gap.max()),
        rewards=Moments.of(rewards.sum(1, dtype=torch.float64)[trained.any(1)]),
        advantages=Moments.where(advantages, trained),
        returns=Moments.of(target),
        errors=Moments.of(target - _at(learned, scored.values)),
        windows=windows,
        distinct=distinct,
    )


def experience_stats(sums: TokenSums, facts: RowFacts, responses_per_prompt: int = 1) -> ExperienceStats:
    """Statistics of a batch, whose rows are as `facts` says; the responses to a prompt are neighbours."""
    scores, tokens = facts.scores.double(), facts.generated.double()
    quantiles = torch.quantile(tokens, torch.tensor(list(LENGTH_QUANTILES.values()), dtype=torch.double))
    named = {name: (float(x.mean()), float(x.std(correction=0))) for name, x in facts.named.items()}
    return ExperienceStats(
        named={f"{name}/{part}": x for name, both in named.items() for part, x in zip(STATISTICS, both, strict=True)},
        score_mean=float(scores.mean()),
        score_std=float(scores.std(correction=0)),
        flat_groups=flat_groups(scores.view(-1, responses_per_prompt)) if responses_per_prompt > 1 else None,
        score_disagreement=float(facts.disagreement.mean()) or None,
        reward_mean=sums.rewards.mean,
        kl=sums.kl / sums.rows,
        kl_per_token=sums.kl / sums.generated,
        advantage_mean=sums.advantages.mean,
        advantage_std=sums.advantages.variance**0.5,
        explained_variance=explained_variance(sums.errors, sums.returns),
        response_length_mean=sums.generated / sums.rows,
        response_length_quantiles=tuple(quantiles.tolist()),
        prompt_length_mean=(sums.read - sums.generated) / sums.rows,
        turns_mean=sums.turns / sums.rows,
        truncated_fraction=float((~facts.finished).double().mean()),
        repeated_fraction=1.0 - sums.distinct / sums.windows if sums.windows else 0.0,
        logprob_gap_mean=sums.gap / sums.generated,
        logprob_gap_max=sums.widest,
    )


def _places(mask: Tensor) -> Tensor:
    """Where a mask is True, in the flattened tensor: looked for once for all tensors that are read there."""
    return mask.flatten().nonzero().squeeze(1)


def _at(places: Tensor, tensor: Tensor) -> Tensor:
    return tensor.flatten()[places]


def named_of(scored: Scored) -> dict[str, Tensor]:
    """Those of `named_numbers` of rows that are at hand."""
    rows = [own | said for own, said in zip(scored.rollouts.counted, scored.named, strict=True)]
    return named_numbers(rows, scored.rollouts.prompts)


def named_numbers(rows: Sequence[Mapping[str, float]], prompts: Sequence[str]) -> dict[str, Tensor]:
    """Name, such as `reward/polite` → float64 `[batch]`. TetrarchError if a response lacks a name that another has.

    Args:
        rows: of each response, name → number.
        prompts: of each response, for errors.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    for number, row in enumerate(rows):
        lacks = next((name for name in names if name not in row), None)
        if lacks is not None:
            group, _, name = lacks.partition("/")
            raise TetrarchError(
                f"the {group} has given no number {name} for response {number} of the batch (prompt "
                f"{prompts[number][:60]!r}), but for others; give one for every response, such as 0"
            )
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names}


def explained_variance(errors: Moments, returns: Moments) -> float:
    """1 - Var(returns - values) / Var(returns), given `errors`, the returns minus the values; 0 if the returns do not
    vary."""
    return 1.0 - errors.variance / returns.variance if returns.vary else 0.0


def flat_groups(scores: Tensor) -> float:
    """Share of the rows of `[prompts, responses]` in which all scores are the same, up to rounding."""
    low, high = scores.amin(1), scores.amax(1)
    return float(torch.isclose(low, high, rtol=1e-5, atol=1e-8).double().mean())


def distinct_windows(token_ids: Tensor, generated: Tensor) -> tuple[int, int]:
    """Number of the sequences of four generated tokens, and of those that have not occurred before in the same
    response, as in Welleck et al. (arXiv 1908.04319).

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
    return total, distinct
