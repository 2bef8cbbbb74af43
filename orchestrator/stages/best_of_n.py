"""`tetrarch best-of-n`: prompts flow in; the best of N responses to each flow out as rows to learn from, with the
measured KL beside its bound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.counts import counted
from cluster.role_table import REWARD
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.serving import ServingRun
from orchestrator.data.prompts import Questions
from orchestrator.data.records import LEARNED_COLUMNS
from orchestrator.errors import NotFinite
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward import Member, Reward
from orchestrator.groups.serving_roles import scored_policy
from orchestrator.groups.spread import wait_for
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.progress import make_progress
from orchestrator.report.run_files import BEST_OF_N, finite
from orchestrator.stages.evaluation import Answered, measured
from orchestrator.stages.serving import policy_to_serve
from orchestrator.stages.win_rate import comparing
from roles.batch import Rollouts
from roles.seeds import stable_seed
from roles.text.messages import MESSAGES, TOOLS, plain_tools

ROWS_AT_A_TIME = 2048
"""Responses that are generated and scored together."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """What picking the best has changed."""

    prompts: int
    responses: int
    """N."""
    score: Estimate
    """Of all responses."""
    best_score: Estimate
    """Of the picked ones."""
    kl: Estimate
    """From the distribution of the picked responses to the policy's, nats."""
    kl_bound: float
    picked: EvaluationResult
    """The picked responses as `tetrarch evaluate` measures a policy, with the KL to the policy that they come from."""

    def lines(self) -> list[str]:
        """For the terminal."""
        cut = self.picked.truncated_fraction
        return [
            f"best of {self.responses}, {counted(self.prompts, 'prompt')}",
            f"  score of all responses  {_told(self.score)}",
            f"  score of the best       {_told(self.best_score)}",
            *([f"  gold score of the best  {_told(self.picked.gold)}"] if self.picked.gold else []),
            f"  KL to the policy        {_told(self.kl)} nats; at most log N - (N-1)/N = {self.kl_bound:.3f}",
            *([f"  of the best were cut    {cut:.1%} (who learns from the rows ends there)"] if cut else []),
        ]


def best_of_n(config: ServingRun, questions: Questions, output: Path | None) -> BestOfN:
    """Pick the best of `serving.responses` responses to each of `questions`; write a row for each to `output`."""
    file = output or Path(config.run_dir) / BEST_OF_N
    with closing(make_progress("best-of-n", 0, 0)) as progress:
        models = policy_to_serve(config)
        progress.status(f"starting the roles, to sample from {models.actor}")
        count = config.serving.responses
        with scored_policy(config, models, progress.starting) as (policy, reward, judge):
            progress.status(f"{counted(count, 'response')} to each of {counted(len(questions), 'prompt')}")
            rows, found, picked = list[dict[str, Any]](), list[Tensor](), list[Rollouts]()
            for rollouts, scores in _scored(config, questions, policy, reward):
                rows += picked_rows(rollouts, scores, count, tools=config.prompts.tools)
                found.append(scores)
                picked.append(rollouts.select(best_rows(scores, count)))
            numbers = _write_rows(rows, file)  # before the judge, which may fail
            best = Rollouts.concatenate(picked)
            gold = _judged(judge, best, config.deadlines.score_s, policy.recovery) if judge else None
        compare = comparing(config)
        gold = compare(best) if compare else gold
        result = summary(best, torch.cat(found), gold, count, config.evaluation.samples)
        result = replace(result, picked=replace(result.picked, name=config.deciding_set))
        numbers.write_text(json.dumps(finite(asdict(result)), indent=1) + "\n")
        progress.lines("\n".join([*result.lines(), f"written to {file} and {numbers}"]))
    return result


def best_of_n_kl(logprob: float, count: int) -> float:
    """KL from the best of `count` samples to their policy, estimated from the log-probability of the best one, nats.

    Beirami et al., arXiv 2401.01879: with p the probability of the best, (1-p)^N (log N + (N-1) log(1-p) - (N-1)/N) +
    (1-(1-p)^N) log((1-(1-p)^N)/p). It is exact if the best response has the probability p and each of the others
    next to none; for p → 0 it is the bound log N - (N-1)/N, which is exact for continuous scores without ties.
    """
    p = math.exp(logprob)
    if p >= 1.0 or count == 1:
        return 0.0
    rest = count * math.log1p(-p)  # log (1-p)^N
    others = math.exp(rest) * (kl_bound(count) + (count - 1) * math.log1p(-p))
    best = -math.expm1(rest)
    return others + (best * (math.log(best) - logprob) if best > 0 else 0.0)


def kl_bound(count: int) -> float:
    """log N - (N-1)/N, nats: what the KL of the best of N cannot exceed."""
    return math.log(count) - (count - 1) / count


def response_logprobs(rollouts: Rollouts) -> Tensor:
    """Log-probability of each response, `[batch]`."""
    return (rollouts.rollout_logprobs.double() * rollouts.response_mask).sum(1)


def best_rows(scores: Tensor, count: int) -> list[int]:
    """The row with the highest score of each prompt; `count` neighbouring rows a prompt."""
    values = scores.tolist()
    return [max(range(first, first + count), key=values.__getitem__) for first in range(0, len(values), count)]


def summary(best: Rollouts, scores: Tensor, gold: Sequence[float | None] | None, count: int, samples: int) -> BestOfN:
    """What picking has changed.

    Args:
        best: the picked response to each prompt.
        scores: of all responses, `[batch]`, `count` neighbouring rows a prompt.
        gold: the judge's scores of the picked responses.
        samples: number of them to keep for a report.
    """
    grouped = scores.view(-1, count)
    kl = [best_of_n_kl(logprob, count) for logprob in response_logprobs(best).tolist()]
    best_scores = grouped.amax(1).tolist()
    return BestOfN(
        prompts=len(grouped),
        responses=count,
        score=Estimate.of(grouped.double().mean(1).tolist()),
        best_score=Estimate.of(best_scores),
        kl=Estimate.of(kl),
        kl_bound=kl_bound(count),
        picked=measured(
            Answered(best, best_scores, gold, kl),
            step=0,
            label=f"best of {count}",
            how=EvaluationConfig(samples=samples),
        ),
    )


def picked_rows(rollouts: Rollouts, scores: Tensor, count: int, *, tools: str | None = None) -> list[dict[str, Any]]:
    """A row for each prompt: the prompt, the best response as its `completion`, and all responses with scores.

    Of the data set's columns those stay that nothing is learned from: others, such as `chosen`, would be learned
    instead of what was sampled.

    Args:
        tools: the column with the tools of each chat, as the policy was asked with them; None if it was not.
    """
    rows = []
    for best in best_rows(scores, count):
        first = best - best % count
        own = range(first, first + count)
        columns = {name: column[first] for name, column in rollouts.columns.items()}
        prompt = columns.get(MESSAGES) or rollouts.prompts[first]
        known = plain_tools(columns[tools]) if tools is not None else ()
        rows.append(
            {
                **{name: value for name, value in columns.items() if name not in LEARNED_COLUMNS},
                "prompt": prompt,
                **({TOOLS: list(known)} if known else {}),
                "completion": rollouts.responses[best],
                "score": float(scores[best]),
                "responses": [rollouts.responses[row] for row in own],
                "scores": [float(scores[row]) for row in own],
            }
        )
    return rows


def _scored(
    config: ServingRun, questions: Questions, policy: Policy, reward: Reward
) -> Iterator[tuple[Rollouts, Tensor]]:
    """Responses with scores, some prompts at a time."""
    count, deadline_s = config.serving.responses, config.deadlines.score_s
    for prompts in _parts(len(questions), max(1, ROWS_AT_A_TIME // count)):
        rows = [row for row in prompts for _ in range(count)]
        seeds = [stable_seed(config.seed, "best-of-n", row, copy) for row in prompts for copy in range(count)]
        rollouts = policy.generate(questions.pick(rows, seeds), version=0)
        scores = reward.start(rollouts)
        wait_for(scores.spreads, deadline_s, policy.recovery)
        values = scores.result(deadline_s)[0]
        if not bool(values.isfinite().all()):
            raise NotFinite(REWARD, "the reward's score of a response is not finite: no response is the best then")
        yield rollouts, values
        policy.recovery.drain()  # as at the end of a step, in which one deadline may pass


def _write_rows(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    """Write the rows; returns the file of their numbers, without those of earlier rows."""
    numbers = file.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers.unlink(missing_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return numbers


def _judged(judge: Member, best: Rollouts, deadline_s: float, recovery: Recovery) -> Sequence[float | None]:
    running = judge.start(best)
    wait_for([running], deadline_s, recovery)
    values: list[float | None] = running.result(deadline_s).tolist()
    return values


def _parts(size: int, at_a_time: int) -> list[Sequence[int]]:
    return [range(first, min(first + at_a_time, size)) for first in range(0, size, at_a_time)]


def _told(value: Estimate) -> str:
    return f"{value.mean:.3f} ± {value.standard_error:.3f}"
