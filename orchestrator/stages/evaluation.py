"""Measures a policy on the held-out prompts: proxy score, gold score, KL to the reference, response length.

Roles and prompts flow in, an EvaluationResult flows out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.role_table import REFERENCE
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.data.opponents import given_prompts
from orchestrator.data.prompts import Questions, heldout_prompts
from orchestrator.groups.build import Models, resolve_models
from orchestrator.groups.scoring import EvaluationRoles
from orchestrator.groups.spread import spread, wait_for
from orchestrator.groups.stage_roles import evaluation_roles
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.progress import Progress, make_progress
from orchestrator.report.run_files import EVALUATED, EVALUATED_ROWS, finite
from orchestrator.report.terminal_lines import evaluation_lines
from orchestrator.stages.benchmarks import run_benchmarks
from orchestrator.stages.measured_policy import MeasuredPolicy, policy_to_measure
from orchestrator.stages.model_export import StoredModel
from orchestrator.stages.win_rate import Compare, comparing
from roles.batch import Prompts, Rollouts, Scored, Sequences
from roles.losses.kl_estimators import k1
from roles.reference import FrozenPolicy
from roles.reward_model import MESSAGES


def evaluate(
    roles: EvaluationRoles,
    prompts: Prompts,
    version: int,
    *,
    step: int,
    label: str,
    samples: int,
    check: Callable[[Rollouts], None] | None = None,
    compare: Compare | None = None,
) -> EvaluationResult:
    """Generate one response to every prompt at the rollout's temperature, let `check` look at them, and score them;
    with `compare` the gold scores are its win rates.

    The KL is k1 of the sampled tokens, summed over a response, from vLLM's log-probabilities and the reference's.
    """
    rollouts = roles.policy.generate(prompts, version=version)
    if check:
        check(rollouts)
    proxy = roles.reward.start(rollouts)
    reference = spread(roles.reference, FrozenPolicy.reference_logprobs, Sequences.of(rollouts))
    judge = roles.judge.start(rollouts) if roles.judge else None
    deadline_s = roles.deadlines.score_s
    wait_for([*proxy.spreads, reference, *([judge] if judge else [])], deadline_s, roles.policy.recovery)
    proxy_values = proxy.result(deadline_s)[0].tolist()
    gold_values = judge.result(deadline_s).tolist() if judge else None
    kl = _response_kl(rollouts.rollout_logprobs, reference.result(deadline_s), rollouts.response_mask)
    gold_values = compare(rollouts) if compare else gold_values
    return measured(rollouts, proxy_values, gold_values, kl, step=step, label=label, samples=samples)


def measured(
    rollouts: Rollouts,
    proxy_values: list[float],
    gold: Sequence[float | None] | None,
    kl: list[float],
    *,
    step: int,
    label: str,
    samples: int,
) -> EvaluationResult:
    """The result of an evaluation from what each response was given. A comparison that the judge has not decided (None)
    counts as one half."""
    gold_values = None if gold is None else [0.5 if value is None else value for value in gold]
    return EvaluationResult(
        step=step,
        label=label,
        prompts=len(rollouts),
        proxy=Estimate.of(proxy_values),
        gold=None if gold_values is None else Estimate.of(gold_values),
        kl=Estimate.of(kl),
        length=Estimate.of(rollouts.response_mask.sum(1).tolist()),
        truncated_fraction=float((~rollouts.finished).double().mean()),
        samples=_sample_rows(rollouts, proxy_values, gold_values, kl, samples),
        proxy_values=proxy_values,
        gold_values=gold_values,
        undecided=0 if gold is None else sum(value is None for value in gold),
    )


def evaluate_run(config: EvaluationRun, questions: Questions, stored: StoredModel | None = None) -> EvaluationResult:
    """`tetrarch evaluate`: measure on `questions` the policy of a checkpoint; without one the actor in `run_dir/actor`,
    or, before a run, the one that it starts from.

    Prints the result and writes it to `run_dir/evaluate.json`.
    """
    run_dir = Path(config.run_dir)
    with closing(make_progress("evaluate", 0, 0)) as progress, policy_to_measure(config, stored) as policy:
        progress.status("preparing the models")
        prompts = heldout_prompts(questions, config.evaluation.prompts, config.seed)
        models = resolve_models(config, (REFERENCE, *config.scorers))
        if policy.folder is not None:
            models = replace(models, actor=policy.folder)
        result, rollouts = _measure(config, prompts, models, policy, progress)
        if config.evaluation.benchmarks is not None:
            progress.status(f"lm-eval: {', '.join(config.evaluation.benchmarks.tasks)}")
        benchmarks = run_benchmarks(config, models.actor)
        told = {**result.to_json(), "benchmarks": [asdict(one) for one in benchmarks]}
        file, rows = run_dir / EVALUATED, run_dir / EVALUATED_ROWS
        file.write_text(json.dumps(finite(told), indent=1) + "\n")
        rows.write_text("".join(map(_line, _rows(rollouts, result))), encoding="utf-8")
        progress.lines("\n".join([evaluation_lines(result, None), *(one.line() for one in benchmarks)]))
        progress.lines(f"written to {file}, all responses to {rows}")
    return result


def _measure(
    config: EvaluationRun, prompts: Prompts, models: Models, policy: MeasuredPolicy, progress: Progress
) -> tuple[EvaluationResult, Rollouts]:
    progress.status(f"starting the roles, to measure {models.actor}")
    with evaluation_roles(config, models, progress.lines, progress.starting) as roles:
        progress.status(f"answering {len(prompts)} held-out prompts")
        samples, answered = config.evaluation.samples, list[Rollouts]()
        where: dict[str, Any] = {"step": policy.step, "label": policy.label, "samples": samples}
        result = evaluate(roles, prompts, 0, **where, check=answered.append, compare=comparing(config))
    return result, answered[0]


def _rows(rollouts: Rollouts, result: EvaluationResult) -> Iterator[dict[str, Any]]:
    """A row for each response, which another evaluation can compare with (`evaluation.judge.against`)."""
    prompts = given_prompts(rollouts.prompts, rollouts.columns)
    gold: Sequence[float | None] = result.gold_values or [None] * len(rollouts)
    for prompt, said, proxy, judged in zip(prompts, rollouts.responses, result.proxy_values, gold, strict=True):
        yield {"prompt": prompt, "completion": said, "score": proxy, "gold": judged}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite(row)) + "\n"


def _response_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> list[float]:
    """KL of each response in nats: k1 summed over its tokens, `[batch]`."""
    values: list[float] = (k1(logprobs, reference_logprobs) * mask).sum(1).tolist()
    return values


def _sample_rows(
    rollouts: Rollouts, proxy: list[float], gold: list[float] | None, kl: list[float], count: int
) -> list[SampleRow]:
    finished = rollouts.finished.tolist()
    return [
        SampleRow(
            prompt=rollouts.prompts[row],
            response=rollouts.responses[row],
            proxy=proxy[row],
            gold=None if gold is None else gold[row],
            kl=kl[row],
            finished=finished[row],
            **_chat(rollouts, row),
        )
        for row in range(min(count, len(rollouts)))
    ]


def _chat(rollouts: Rollouts, row: int) -> dict[str, list[dict[str, str]]]:
    """`messages` and `talk` of a sample: of a conversation with an environment the latter begins with its first
    response."""
    given = rollouts.columns[MESSAGES][row] if MESSAGES in rollouts.columns else None
    messages = [{name: _text(message[name]) for name in ("role", "content")} for message in given or []]
    said = messages[-1] if messages else {"role": "", "content": ""}
    begin = len(messages)
    if said["role"] == "assistant" and rollouts.responses[row].strip().endswith(said["content"].strip()):
        mask = rollouts.response_mask[row]
        turns = int((mask[1:] & ~mask[:-1]).sum())
        begin = [place for place, message in enumerate(messages) if message["role"] == "assistant"][-turns]
    return {"messages": messages[:begin], "talk": messages[begin:]}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def training_samples(scored: Scored, count: int, responses_per_prompt: int) -> list[SampleRow]:
    """`count` responses of a training batch, to as many prompts as possible."""
    order = sorted(range(len(scored)), key=lambda row: (row % responses_per_prompt, row))
    scored = scored.select(order[:count])
    kl = _response_kl(scored.old_logprobs, scored.reference_logprobs, scored.rollouts.response_mask)
    return _sample_rows(scored.rollouts, scored.scores.tolist(), None, kl, count)
