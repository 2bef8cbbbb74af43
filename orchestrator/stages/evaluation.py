"""Measures a policy on the held-out prompts: proxy score, gold score, KL to the reference, response length.

Roles and prompts flow in, an EvaluationResult flows out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.counts import counted
from cluster.role_table import REFERENCE
from orchestrator.config.evaluation import EvaluationConfig, EvaluationRun, EvaluationSampling
from orchestrator.data.opponents import given_prompts
from orchestrator.data.prompts import Questions, heldout_prompts
from orchestrator.groups.canary import ROWS
from orchestrator.groups.resolved_models import Models, resolve_models
from orchestrator.groups.scoring import EvaluationRoles
from orchestrator.groups.spread import spread, wait_for
from orchestrator.groups.stage_roles import evaluation_roles
from orchestrator.report.evaluation_files import EvaluationFiles
from orchestrator.report.evaluation_parts import by_value, pass_rates, prompt_means
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.progress import Progress, make_progress
from orchestrator.report.terminal_lines import evaluation_lines
from orchestrator.stages.benchmarks import run_benchmarks
from orchestrator.stages.measured_policy import MeasuredPolicy, policy_to_measure
from orchestrator.stages.model_export import StoredModel
from orchestrator.stages.win_rate import Compare, comparing
from roles.batch import Prompts, Rollouts, Scored, Sequences
from roles.losses.kl_estimators import k1
from roles.reference import FrozenPolicy
from roles.text.messages import MESSAGES


@dataclass(frozen=True, slots=True)
class Answered:
    """The responses of an evaluation, and what each was given."""

    rollouts: Rollouts
    proxy: list[float]
    gold: Sequence[float | None] | None
    """None without a judge; of a response None where the judge has not decided a comparison."""
    kl: list[float] | None
    """Nats; None if the responses were not sampled as in training."""

    @property
    def gold_values(self) -> list[float] | None:
        """The gold scores; a comparison that is not decided counts as one half."""
        return None if self.gold is None else [0.5 if value is None else value for value in self.gold]


def evaluate(
    roles: EvaluationRoles,
    prompts: Prompts,
    version: int,
    *,
    step: int,
    label: str,
    how: EvaluationConfig,
    check: Callable[[Rollouts], None] | None = None,
    compare: Compare | None = None,
) -> EvaluationResult:
    """Answer and score the prompts, which stand there `how.responses_per_prompt` times; `check` and `compare`: see
    `answered`."""
    found = answered(roles, prompts, version, sampling=how.sampling, check=check, compare=compare)
    return measured(found, step=step, label=label, how=how)


def answered(
    roles: EvaluationRoles,
    prompts: Prompts,
    version: int,
    *,
    sampling: EvaluationSampling | None = None,
    check: Callable[[Rollouts], None] | None = None,
    compare: Compare | None = None,
) -> Answered:
    """Generate a response to every row of the prompts, and score them; with `compare` the gold scores are its win
    rates.

    Without a `sampling` of its own it is the rollout's; `check` looks at the responses, and the KL is k1 of the sampled
    tokens, summed over a response, from vLLM's log-probabilities and the reference's. With one, the log-probabilities
    are those of another distribution than the reference's, so `check` looks at a few other responses, sampled as in
    training.
    """
    rollouts = roles.policy.generate(prompts, version=version, sampled=_sampled(sampling))
    if check:
        few = prompts.select(range(min(ROWS, len(prompts))))
        seeded = replace(few, seeds=list(range(len(few))))  # greedy ones have none
        check(rollouts if sampling is None else roles.policy.generate(seeded, version=version))
    proxy = roles.reward.start(rollouts)
    reference = None
    if sampling is None:
        reference = spread(roles.reference, FrozenPolicy.reference_logprobs, Sequences.of(rollouts))
    judge = roles.judge.start(rollouts) if roles.judge else None
    deadline_s = roles.deadlines.score_s
    others = [one for one in (reference, judge) if one is not None]
    wait_for([*proxy.spreads, *others], deadline_s, roles.policy.recovery)
    proxy_values = proxy.result(deadline_s)[0].tolist()
    gold_values = judge.result(deadline_s).tolist() if judge else None
    kl = None
    if reference is not None:
        kl = _response_kl(
            rollouts.rollout_logprobs, reference.tokens(rollouts.response_mask, deadline_s), rollouts.response_mask
        )
    return Answered(rollouts, proxy_values, compare(rollouts) if compare else gold_values, kl)


def _sampled(sampling: EvaluationSampling | None) -> dict[str, float] | None:
    """The keys of `rollout` with other values, if there are any; prompts that are answered greedily say so."""
    return sampling.model_dump() if sampling is not None and sampling.temperature else None


def measured(found: Answered, *, step: int, label: str, how: EvaluationConfig) -> EvaluationResult:
    """The result of an evaluation."""
    rollouts, each, gold = found.rollouts, how.responses_per_prompt, found.gold_values
    proxy_values, gold_values = prompt_means(found.proxy, each), None if gold is None else prompt_means(gold, each)
    scores = proxy_values if gold_values is None else gold_values
    lengths: list[int] = rollouts.response_mask.sum(1).tolist()
    return EvaluationResult(
        step=step,
        label=label,
        prompts=len(proxy_values),
        proxy=Estimate.of(proxy_values),
        gold=None if gold_values is None else Estimate.of(gold_values),
        kl=None if found.kl is None else Estimate.of(prompt_means(found.kl, each)),
        length=Estimate.of(prompt_means(lengths, each)),
        truncated_fraction=float((~rollouts.finished).double().mean()),
        samples=_sample_rows(found, range(0, len(rollouts), each)[: how.samples]),
        proxy_values=proxy_values,
        gold_values=gold_values,
        undecided=0 if found.gold is None else sum(value is None for value in found.gold),
        passed={} if how.passes is None else pass_rates(gold or found.proxy, each, how.passes),
        by={} if how.by is None else by_value(scores, rollouts.columns[how.by][::each]),
    )


def asked_heldout(config: EvaluationRun, heldout: Mapping[str, Questions]) -> dict[str, Prompts]:
    """The prompts of each set of held-out ones that an evaluation answers; the set that compares steps is the last."""
    how = config.evaluation
    greedy = how.sampling is not None and how.sampling.temperature == 0
    names = sorted(heldout, key=lambda name: name == config.deciding_set)
    shape = how.prompts, config.seed, how.responses_per_prompt
    return {name: heldout_prompts(heldout[name], *shape, greedy=greedy) for name in names}


def evaluate_run(
    config: EvaluationRun, heldout: Mapping[str, Questions], stored: StoredModel | None = None
) -> EvaluationResult:
    """`tetrarch evaluate`: measure on each set of held-out prompts the policy of a checkpoint; without one the actor in
    `run_dir/actor`, or, before a run, the one that it starts from.

    Prints the results and writes them to `run_dir/evaluate.json`, those of a set as soon as it is done; returns that of
    the set that compares steps.
    """
    files = EvaluationFiles(Path(config.run_dir))
    with closing(make_progress("evaluate", 0, 0)) as progress, policy_to_measure(config, stored) as policy:
        progress.status("preparing the models")
        prompts = asked_heldout(config, heldout)
        models = resolve_models(config, (REFERENCE, *config.scorers))
        if policy.folder is not None:
            models = replace(models, actor=policy.folder)
        result = _measure(config, prompts, models, policy, progress, files)
        if config.evaluation.benchmarks is not None:
            progress.status(f"lm-eval: {', '.join(config.evaluation.benchmarks.tasks)}")
        benchmarks = run_benchmarks(config, models.actor)
        files.end([asdict(one) for one in benchmarks])
        numbers, rows = files.paths
        told = f"written to {numbers}, all responses to {rows}"
        progress.lines("\n".join([*(one.line() for one in benchmarks), told]))
    return result


def _measure(
    config: EvaluationRun,
    asked: Mapping[str, Prompts],
    models: Models,
    policy: MeasuredPolicy,
    progress: Progress,
    files: EvaluationFiles,
) -> EvaluationResult:
    """Measure set after set; returns the result of the last."""
    progress.status(f"starting the roles, to measure {models.actor}")
    how = config.evaluation
    with evaluation_roles(config, models, progress.lines, progress.starting) as roles:
        for name, prompts in asked.items():
            count = len(prompts) // how.responses_per_prompt
            progress.status(f"answering {counted(count, 'held-out prompt')}{f' of {name}' if name else ''}")
            found = answered(roles, prompts, 0, sampling=how.sampling, compare=comparing(config))
            result = measured(found, step=policy.step, label=policy.label, how=how)
            result = replace(result, name=name, decides=name == config.deciding_set)
            files.add(result, _rows(found, name))
            progress.lines(evaluation_lines(result, None))
            roles.policy.recovery.drain()  # as at the end of a step, in which one deadline may pass
    return result


def _rows(found: Answered, name: str) -> Iterator[dict[str, Any]]:
    """A row for each response of the set `name`, which another evaluation can compare with
    (`evaluation.judge.against`)."""
    rollouts = found.rollouts
    prompts = given_prompts(rollouts.prompts, rollouts.columns)
    gold: Sequence[float | None] = found.gold_values or [None] * len(rollouts)
    each = zip(prompts, rollouts.responses, found.proxy, gold, strict=True)
    for number, (prompt, said, proxy, judged) in enumerate(each):
        talked = len(_chat(rollouts, number)["talk"])  # of a conversation: the messages have its responses too
        row = {"prompt": prompt[: len(prompt) - talked], "completion": said, "score": proxy, "gold": judged}
        yield {**row, "set": name} if name else row


def _response_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> list[float]:
    """KL of each response in nats: k1 summed over its tokens, `[batch]`."""
    values: list[float] = (k1(logprobs, reference_logprobs) * mask).sum(1).tolist()
    return values


def _sample_rows(found: Answered, rows: Sequence[int]) -> list[SampleRow]:
    rollouts, gold = found.rollouts, found.gold_values
    return [
        SampleRow(
            prompt=rollouts.prompts[row],
            response=rollouts.responses[row],
            proxy=found.proxy[row],
            gold=None if gold is None else gold[row],
            kl=math.nan if found.kl is None else found.kl[row],
            finished=bool(rollouts.finished[row]),
            **_chat(rollouts, row),
        )
        for row in rows
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


def of_different_prompts(rows: int, count: int, responses_per_prompt: int) -> list[int]:
    """`count` of a batch's rows, to as many prompts as possible."""
    return sorted(range(rows), key=lambda row: (row % responses_per_prompt, row))[:count]


def training_samples(scored: Scored) -> list[SampleRow]:
    """Some rows of a training batch."""
    kl = _response_kl(scored.old_logprobs, scored.reference_logprobs, scored.rollouts.response_mask)
    return _sample_rows(Answered(scored.rollouts, scored.scores.tolist(), None, kl), range(len(scored)))
