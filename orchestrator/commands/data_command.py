"""The command `data`: what a configuration reads to train on. Statistics and rendered rows flow out; nothing starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import ConfigFile, Debug, Overrides
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import RecordsConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import load_all
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.config.reward_training import PairDataset, RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.secrets import check_overrides
from orchestrator.config.sft import SftRun
from roles.config.models import ModelConfig
from roles.config.preference_losses import KtoLoss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestrator.data.records import RecordKind
    from roles.text.sample_tokens import TokenSample

SHOWN_ROWS = 5
"""Rows that are shown of each data set."""


class DataSection(NamedTuple):
    """A data set to learn from, and the model whose tokenizer reads it."""

    data: RecordsConfig
    key: str
    kind: RecordKind
    model: ModelConfig
    model_key: str
    chat_template: str | None = None


def show_data(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Show what would be trained on: statistics, and five rows as the model reads them, without starting anything.

    Example: tetrarch data configs/sft.yaml
    """
    with reported(debug):
        check_overrides(overrides or ())
        runs = list(load_all(config, overrides or ()).values())
        for run in runs:
            for section in data_sections(run):
                _show_section(section, run.model_cache)
            if isinstance(run, LabellingRun):
                _show_candidates(run)
        sampling = next((run for run in runs if isinstance(run, SamplingConfig)), None)  # all read the same prompts
        if sampling is not None and sampling.environment is None:
            _show_prompts(sampling)


def data_sections(run: BaseConfig) -> Iterator[DataSection]:
    """The comparisons, labelled responses and demonstrations that a configuration names."""
    if isinstance(run, SftRun):
        yield from _training_sections(run.sft, "demonstrations")
    if isinstance(run, DpoRun):
        yield from _training_sections(run.dpo, "labels" if isinstance(run.dpo.loss, KtoLoss) else "preferences")
    if isinstance(run, RunConfig) and run.ppo.ptx is not None:
        yield DataSection(run.ppo.ptx.data, f"{run.ppo.ptx.key}.data", "demonstrations", run.actor.model, "actor.model")
    if isinstance(run, RewardTrainingRun):
        training, pairs = run.reward_training, run.reward_training.pairs
        if isinstance(pairs, PairDataset):
            key, model_key = "reward_training.pairs.dataset", "reward_training.model"
            yield DataSection(pairs.dataset, key, "preferences", training.model, model_key)


def _training_sections(training: PolicyTrainingConfig, kind: RecordKind) -> Iterator[DataSection]:
    for name, data in (("data", training.data), ("heldout", training.heldout)):
        if data is not None:
            key, model_key = f"{training.key}.{name}", f"{training.key}.model"
            yield DataSection(data, key, kind, training.model, model_key, training.chat_template)


def _show_section(section: DataSection, cache: str) -> None:
    from orchestrator.checks.models import model_facts
    from orchestrator.data.samples import read_samples
    from orchestrator.data.training_parts import with_template

    tokenizer = model_facts(section.model, section.model_key, cache).tokenizer
    tokenizer = with_template(tokenizer, section.chat_template, section.key.partition(".")[0])
    samples = read_samples(section.data, section.key, section.kind, tokenizer)
    typer.echo("\n".join(samples.statistics.lines()))
    typer.echo("what is trained on stands between ⟦ and ⟧:")
    for number, group in enumerate(islice(samples.groups, SHOWN_ROWS)):
        for place, sample in enumerate(group):
            value = f" (value {samples.values[number][place]:g})" if samples.values[number] else ""
            typer.echo(f"  {number}{value}: {marked(sample, tokenizer)}")


def _show_candidates(run: LabellingRun) -> None:
    from orchestrator.data.samples import read_records
    from orchestrator.data.statistics import DataStatistics

    statistics = DataStatistics("labelling.data")
    found = read_records(run.labelling.data, statistics, "candidates", lambda record: None)
    typer.echo("\n".join([*statistics.lines(), "what the judge is shown:"]))
    for number, (record, _) in enumerate(found[:SHOWN_ROWS]):
        typer.echo(f"  {number}: {record.prompt!r} → {' | '.join(map(repr, record.responses))}")


def _show_prompts(run: SamplingConfig) -> None:
    from orchestrator.checks.models import model_facts
    from orchestrator.data.prompts import read_questions

    tokenizer = model_facts(run.actor.model, "actor.model", run.model_cache).tokenizer
    for part in ("train", *map(run.prompts.part, run.prompts.heldout_names)):
        questions = read_questions(run.prompts, part, tokenizer)
        typer.echo(questions.summary)
        typer.echo("what the policy is asked:")
        for number, text in enumerate(questions.texts[:SHOWN_ROWS]):
            typer.echo(f"  {number}: {text!r}")


def marked(sample: TokenSample, tokenizer: PreTrainedTokenizerBase) -> str:
    """The sample as text in one line, what is trained on in brackets: `'what is'⟦' red<eos>'⟧`."""
    parts = groupby(zip(sample.token_ids, sample.trained, strict=True), key=lambda pair: pair[1])
    texts = ((trained, repr(tokenizer.decode([token for token, _ in part]))) for trained, part in parts)
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in texts)
