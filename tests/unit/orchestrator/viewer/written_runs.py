"""Runs as training writes them, by its own code: samples in Parquet files, metrics, evaluations, a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedTokenizerFast

from configs.tiny.inputs import tokenizer
from orchestrator.config.report import SampleFilesConfig, TokenColumn
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.reporter import Reporter
from orchestrator.run.sample_files import StepSamples, write_samples
from roles.batch import Rollouts, Scored

ALL = SampleFilesConfig(token_columns=list(get_args(TokenColumn)))
"""Everything is kept of each token."""
CONFIG = "seed: 1\nrun_dir: {}\nactor: {{model: {{path: no/such/model}}}}\n"

words = cache(tokenizer)
"""The tokenizer of the tiny policy."""


@dataclass(frozen=True, slots=True)
class Said:
    """A sample. With `talk`, the turns of a conversation stand in place of the response, the policy's first."""

    prompt: str
    response: str = ""
    score: float = 0.0
    finished: bool = True
    trained: bool = True
    chat: tuple[dict[str, str], ...] = ()
    talk: tuple[str, ...] = ()


def step_samples_of(step: int, rows: Sequence[Said], each: int = 1, named: dict[str, Any] | None = None) -> StepSamples:
    """A step's samples; the numbers of the tokens follow from row and place, so that a test can say them."""
    fast: PreTrainedTokenizerFast = words()
    parts = [[fast.encode(row.prompt), *(fast.encode(text) for text in row.talk or (row.response,))] for row in rows]
    lengths = torch.tensor([sum(map(len, part)) for part in parts])
    width = int(lengths.max())
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, part in enumerate(parts):
        place = 0
        for turn, tokens in enumerate(part):
            ids[number, place : place + len(tokens)] = torch.tensor(tokens)
            mask[number, place : place + len(tokens)] = turn % 2 == 1
            place += len(tokens)
    place_of = torch.arange(width).expand(len(rows), width)
    own = (0.01 * place_of + torch.arange(len(rows))[:, None]) * mask
    chats = [[dict(one) for one in row.chat] or None for row in rows]
    environment = any(row.talk for row in rows)
    rollouts = Rollouts(
        token_ids=ids,
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=-own,
        turn_rewards=torch.zeros(len(rows), width),
        finished=torch.tensor([row.finished for row in rows]),
        versions=torch.full((len(rows),), step - 1),
        prompts=[row.prompt for row in rows],
        responses=["".join(row.talk) or row.response for row in rows],
        columns={"messages": chats} if any(chats) else {},
        counted=[{}] * len(rows),
    )
    scores = torch.tensor([row.score for row in rows])
    scored = Scored(rollouts, -own, -2.0 * own, own, scores, torch.zeros(len(rows)), [dict(named or {}) for _ in rows])
    tokens = dict.fromkeys((name for name in get_args(TokenColumn) if name != "token_ids"), own)
    tokens |= {"rollout_logprobs": -own, "old_logprobs": -own, "reference_logprobs": -2.0 * own, "advantages": -own}
    drawn = {row.prompt: number for number, row in enumerate(rows)}
    numbers = {name: torch.full((len(rows),), value, dtype=torch.float64) for name, value in (named or {}).items()}
    return StepSamples(
        step=step,
        scored=scored,
        prompt_ids=[len(row.prompt) for row in rows[::each]] if len(drawn) > 1 else [len(rows[0].prompt)],
        seeds=[2**60 + number for number in range(len(rows))],
        trained={number for number, row in enumerate(rows) if row.trained},
        dropped={number: "truncated" for number, row in enumerate(rows) if not row.trained},
        environment=environment,
        named=numbers,
        per_token=tokens,
    )


@contextmanager
def writing(folder: Path, steps: int = 3, **said: Any) -> Iterator[Reporter]:
    """Context with the report of a run that is under way."""
    told = {"name": folder.name, "title": "PPO", "config_yaml": CONFIG.format(folder), "steps": steps, **said}
    with Reporter(folder, tensorboard=False, html=False, **told) as report:
        yield report


def report_step(
    report: Reporter, samples: StepSamples, kept: SampleFilesConfig | None = ALL, score: float = 0.0
) -> None:
    """Tell a step and write its samples."""
    keep = None if kept is None else lambda path: write_samples(samples, kept, path)
    rows = [
        SampleRow(prompt, response, float(its), None, 0.5, True)
        for prompt, response, its in zip(
            samples.scored.rollouts.prompts, samples.scored.rollouts.responses, samples.scored.scores, strict=True
        )
    ][:2]
    metrics = {"score/mean": score or 0.1 * samples.step, "objective/kl": 0.5, "response/length_mean": 8.0}
    report.step(samples.step, metrics, rows, ledger=samples.line.to_json(), keep=keep)


def an_evaluation(step: int, label: str, rows: Sequence[Said]) -> EvaluationResult:
    """An evaluation that shows these samples."""
    shown = [SampleRow(row.prompt, row.response, row.score, None, 0.25, row.finished, list(row.chat)) for row in rows]
    scores = [row.score for row in rows]
    estimates = [Estimate.of(scores), None, Estimate(0.25, 0.1), Estimate(8.0, 1.0)]
    return EvaluationResult(step, label, len(rows), *estimates, 0.0, shown, scores)  # type: ignore[arg-type]


ROWS = (
    Said("tell me about the red river", "it is red", 0.5),
    Said("tell me about the old river", "it is very old and very long", -1.5, finished=False, trained=False),
    Said("draw the small engine of a ship", "a Small engine", 2.0),
)
"""A step of three prompts."""


def a_run(folder: Path, steps: int = 3, kept: SampleFilesConfig | None = ALL, rows: Sequence[Said] = ROWS) -> Path:
    """A run that is done, whose scores rise by 1 with each step; it has left its policy's tokenizer."""
    with writing(folder, steps) as report:
        report.evaluation(an_evaluation(0, "before", rows[:2]))
        for step in range(1, steps + 1):
            risen = [replace(row, score=row.score + step - 1, response=f"{row.response} {step}") for row in rows]
            report_step(report, step_samples_of(step, risen), kept)
        report.evaluation(an_evaluation(steps, "after", [replace(row, response="later") for row in rows[:2]]))
        report.complete()
    words().save_pretrained(folder / "actor")
    return folder
