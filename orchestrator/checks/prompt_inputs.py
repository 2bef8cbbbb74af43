"""What a command names exists, and its prompts are read: training prompts, and every set of held-out ones.

A configuration flows in, prompts flow out; what is wrong goes to `Problems`, or is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.checks.functions import check_functions
from orchestrator.checks.models import ModelFacts, check_folder
from orchestrator.checks.problems_together import Problems
from orchestrator.checks.role_models import check_hub_names, role_models
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.schema import section_key
from orchestrator.data.dataset_rows import check_source

if TYPE_CHECKING:
    from orchestrator.data.prompts import Questions

TRAIN_IT = "correct the path, or train it first: tetrarch reward CONFIG"


def check_names(config: EvaluationRun, parts: Sequence[str], problems: Problems) -> None:
    """Check that everything that the configuration names exists; of the prompts the keys `parts`."""
    rewards = {f"{section_key(role)}.model" for role in config.reward_models}
    problems.of(partial(check_functions, config))
    for part in parts:
        if (dataset := config.prompts.dataset(part)) is not None:
            problems.of(partial(check_source, dataset, f"prompts.{part}"))
    for key, model in role_models(config).items():
        problems.of(partial(check_folder, model, key, TRAIN_IT if key in rewards else "correct the path"))
    if problems:  # names of the hub are looked up below; then, so that a new file's errors come together, here
        check_hub_names(config, problems)


def heldout_parts(config: EvaluationRun, names: Sequence[str]) -> list[str]:
    """The keys below `prompts` of the rows of these sets of held-out prompts."""
    parts = [config.prompts.part(name) for name in names]
    return [part if config.prompts.dataset(part) is not None else "train" for part in parts]


def read_prompt_rows(config: SamplingConfig, part: str, actor: ModelFacts) -> Questions:
    """The prompts of a key below `prompts`; ConfigError for a row that cannot be used, unless `prompts.too_long` allows
    it."""
    # These load torch: not before the quick checks have passed.
    from orchestrator.checks.columns import check_columns
    from orchestrator.checks.environment_tasks import played_tasks
    from orchestrator.data.prompts import read_questions

    if config.environment is not None:
        questions = played_tasks(config, part, actor.tokenizer)
    else:
        questions = read_questions(config.prompts, part, actor.tokenizer)
    if isinstance(config, EvaluationRun):
        check_columns(config, part, questions)
    return questions


def read_heldout(
    config: EvaluationRun, names: Sequence[str], actor: ModelFacts, problems: Problems
) -> dict[str, Questions]:
    """The held-out prompts by the names of their sets; what is wrong goes to `problems`."""
    parts = {name: config.prompts.part(name) for name in names}
    read = {name: problems.of(partial(read_prompt_rows, config, part, actor)) for name, part in parts.items()}
    return {name: questions for name, questions in read.items() if questions is not None}
