"""Checks what the trainings need that make a policy of a data set, and reads the data.

A configuration flows in, the data flows out; or a ConfigError that names key, value and fix. The cheap checks come
first.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checks.model_support import check_attention, check_weights
from orchestrator.checks.models import check_context, check_folder, check_tokenizer, model_facts
from orchestrator.checks.preparation import check_cards, check_learned
from orchestrator.checks.problems_together import Problems
from orchestrator.checks.run_folders import check_access, check_output, check_run_dir
from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DPO_QUALITY, DpoRun
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.config.sft import SFT_QUALITY, SftRun
from orchestrator.data.dataset_rows import check_source
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.resuming import Resume
from orchestrator.sizes.model_sizes import check_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestrator.data.demonstrations import SftData
    from orchestrator.data.preference_samples import DpoData


def prepare_sft(config: SftRun, resume: Resume) -> SftData:
    """What `tetrarch sft` needs; the demonstrations that were read on the way."""
    tokenizer, checkpoint = _prepared(config, config.sft, SFT_QUALITY, resume)
    from orchestrator.data.demonstrations import read_demonstrations  # loads torch

    data = read_demonstrations(config.sft, tokenizer, config.seed)
    steps = len(data.schedule(config.sft, config.seed))
    check_learned(LearnedData.demonstrations(data.digest(), steps), checkpoint)
    return data


def prepare_dpo(config: DpoRun, resume: Resume) -> DpoData:
    """What `tetrarch dpo` needs; the comparisons or labelled responses that were read on the way."""
    tokenizer, checkpoint = _prepared(config, config.dpo, DPO_QUALITY, resume)
    check_access(Path(config.model_cache), "model_cache")  # of a job it need not last: the reference is asked again
    from orchestrator.data.preference_samples import read_preferences  # loads torch

    data = read_preferences(config.dpo, tokenizer, config.seed)
    steps = len(data.schedule(config.dpo, config.seed))
    check_learned(LearnedData.preferences(data.training.digest(), steps), checkpoint)
    return data


def _prepared(
    config: BaseConfig, section: PolicyTrainingConfig, made: str, resume: Resume
) -> tuple[PreTrainedTokenizerBase, Checkpoint | None]:
    """Check everything but the rows: the tokenizer that reads them, and the checkpoint that the run goes on from.

    Args:
        made: a file in every folder that the command writes.
    """
    key = section.key
    problems = Problems()
    problems.of(lambda: check_output(section.output, f"{key}.output", made, resume))
    checkpoint = problems.of(lambda: check_run_dir(config, resume))
    problems.of(lambda: check_cards(config.device))
    for name, source in (("data", section.data), ("heldout", section.heldout)):
        if source is not None:
            problems.of(partial(check_source, source, f"{key}.{name}"))
    problems.of(lambda: check_folder(section.model, f"{key}.model"))
    problems.end()
    model = model_facts(section.model, f"{key}.model", config.model_cache)
    check_tokenizer(model)
    problems.of(lambda: check_context(model, section.max_tokens, f"{key}.max_tokens"))
    problems.of(lambda: check_attention(model))
    problems.of(lambda: check_weights(model, "policy"))
    problems.of(lambda: check_adapters(config))
    problems.end()
    from orchestrator.data.training_parts import with_template  # loads torch

    return with_template(model.tokenizer, section.chat_template, key), checkpoint
