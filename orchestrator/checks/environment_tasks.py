"""Checks of an environment before the start: the tasks are read, and one turn of the first task is played.

A configuration flows in; the tasks flow out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from orchestrator.config.sampling import SamplingConfig
from orchestrator.data.prompt_columns import PromptKind
from orchestrator.data.prompts import Questions, example_of, read_tasks
from orchestrator.errors import ConfigError
from roles.errors import EnvironmentFailed
from roles.generation.conversation import check_opening
from roles.generation.environments import Environments
from roles.generation.turn_format import TurnFormat
from roles.seeds import short_seed


def played_tasks(config: SamplingConfig, part: str, tokenizer: PreTrainedTokenizerBase) -> Questions:
    """All tasks. Begins the first one's conversation and answers it with an empty response; the tokenizer must write
    both."""
    environment, tasks = config.environment, read_tasks(config.prompts, part)
    assert environment is not None
    columns = {name: column[0] for name, column in tasks.columns.items()}
    try:
        player = Environments(environment.model_copy(update={"workers": 1, "retries": 0}))
        try:
            player.begin()
            # Neither wait is for ever: an answer has its deadline, environment.timeout_s.
            seed = short_seed(config.seed, "door")  # as large as those of the run may be
            opening = player.ask(0, columns, seed, [], []).result()
            form = TurnFormat(tokenizer)
            ids = form.opening(opening[0] or [])[1]
            check_opening(len(ids), config.prompts.max_tokens)
            answer = player.ask(0, columns, seed, [opening], [""]).result()
            if answer[0] is not None:
                form.following(answer[0], None)
        finally:
            player.close()
    except EnvironmentFailed as error:
        raise ConfigError(f"environment.path={environment.path}: {error}") from None
    kind: PromptKind = "chat" if form.chat else "text"
    return replace(tasks, example=example_of(f"prompts.{part}", 0, opening[0], ids, tokenizer, kind))
