"""Data set → prompts. A configuration and a tokenizer flow in; the Prompts of each step flow out, in an order that is a
function of the run's seed alone.

`orchestrator.checks` reads the data, `orchestrator.training` draws from it, `orchestrator.evaluation` asks it.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from orchestrator.config import DatasetConfig, PromptsConfig
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.sources import load_rows
from roles.batch import Prompts
from roles.seeds import short_seed, stable_seed

COLUMNS = ("prompt", "messages", "prompt_token_ids")
"""What a row's prompt may stand in."""


@dataclass(frozen=True, slots=True)
class Questions:
    """All usable prompts of one data set, in the data set's order."""

    token_ids: list[list[int]]
    """Without padding, none longer than `prompts.max_tokens`; empty ones where an environment says the first word."""
    texts: list[str]
    """After the chat template."""
    columns: dict[str, list[Any]]
    """The other columns; and `messages`, where they are the prompts; for an environment all of them."""
    summary: str
    """For the user: how many there are, how long they are, and what became of those that were too long."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def pick(self, rows: list[int], seeds: Sequence[int], environment_seeds: Sequence[int] | None = None) -> Prompts:
        """The rows `rows`, in that order; the environment's seeds are by default the sampling seeds."""
        return Prompts(
            token_ids=[self.token_ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            columns={name: [column[row] for row in rows] for name, column in self.columns.items()},
            seeds=list(seeds),
            environment_seeds=list(seeds if environment_seeds is None else environment_seeds),
        )

    def fingerprint(self) -> str:
        """A hash of all tokens; of all columns, where an environment makes the prompts of them."""
        digest = hashlib.blake2b(digest_size=16)
        for ids in self.token_ids:
            digest.update(array("q", [len(ids), *ids]).tobytes())
        if not any(self.token_ids):
            digest.update(json.dumps(self.columns, sort_keys=True, default=str).encode())
        return digest.hexdigest()


class PromptSource:
    """The training prompts without end: each pass has a fresh permutation; the cursor can be saved."""

    def __init__(self, questions: Questions, seed: int) -> None:
        self._questions = questions
        self._seed = seed
        self._fingerprint = questions.fingerprint()
        self._pass = 0
        self._position = 0
        self._draws = 0
        self._order = self._permutation()

    def __len__(self) -> int:
        """Usable prompts of the data set."""
        return len(self._questions)

    def next(self, prompts: int, responses_per_prompt: int) -> Prompts:
        """The next so many prompts, each as `responses_per_prompt` consecutive rows with different sampling seeds."""
        rows = [row for _ in range(prompts) for row in [self._advance()] * responses_per_prompt]
        seeds = [stable_seed(self._seed, self._draws, row) for row in range(len(rows))]
        first = [row - row % responses_per_prompt for row in range(len(rows))]
        environments = [short_seed(self._seed, "environment", self._draws, row) for row in first]
        self._draws += 1
        return self._questions.pick(rows, seeds, environments)

    def state_dict(self) -> dict[str, Any]:
        """Where in the data the run is. JSON-able."""
        cursor = {"pass": self._pass, "position": self._position, "draws": self._draws}
        return {**cursor, "seed": self._seed, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. CheckpointError if data or seed are others than then."""
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                "the prompts in prompts.train are not those of the checkpoint (other rows, tokenizer, max_tokens or "
                "too_long); restore them, or start anew in another run_dir"
            )
        if state["seed"] != self._seed:
            raise CheckpointError(f"seed={self._seed}, but the checkpoint has {state['seed']}; resume with that one")
        self._pass, self._position, self._draws = state["pass"], state["position"], state["draws"]
        self._order = self._permutation()

    def _advance(self) -> int:
        if self._position == len(self._order):
            self._pass, self._position = self._pass + 1, 0
            self._order = self._permutation()
        self._position += 1
        return self._order[self._position - 1]

    def _permutation(self) -> list[int]:
        order = list(range(len(self._questions)))
        random.Random(stable_seed(self._seed, "order", self._pass)).shuffle(order)
        return order


def heldout_prompts(questions: Questions, count: int, seed: int) -> Prompts:
    """The first `count` of the held-out prompts (all, where there are fewer), always with the same sampling seeds."""
    rows = list(range(min(count, len(questions))))
    seeds = [stable_seed(seed, "heldout", row) for row in rows]
    return questions.pick(rows, seeds, [short_seed(seed, "environment", "heldout", row) for row in rows])


def read_tasks(config: PromptsConfig, part: Literal["train", "heldout"]) -> Questions:
    """All rows as they are, for an environment that makes the prompts of them."""
    dataset = require_part(config, part)
    rows = load_rows(dataset, f"prompts.{part}")
    columns = {name: list(rows[name]) for name in rows.column_names}
    if "messages" in columns:
        columns["messages"] = [_present(entry) if _are_messages(entry) else entry for entry in columns["messages"]]
    size = len(rows)
    return Questions([[]] * size, [""] * size, columns, f"prompts.{part}: {size} tasks for the environment")


def require_part(config: PromptsConfig, part: Literal["train", "heldout"]) -> DatasetConfig:
    """Where the training or held-out prompts are."""
    dataset = config.train if part == "train" else config.heldout
    if dataset is None:
        raise ConfigError("prompts.heldout is null; set prompts.heldout.path to prompts that are never trained on")
    return dataset


def read_questions(
    config: PromptsConfig, part: Literal["train", "heldout"], tokenizer: PreTrainedTokenizerBase
) -> Questions:
    """All training or held-out prompts, tokenised, `prompts.too_long` applied."""
    dataset = require_part(config, part)
    rows = load_rows(dataset, f"prompts.{part}")
    where = f"prompts.{part}.path={dataset.path}"
    column = _prompt_column(config, rows.column_names, where)
    texts, token_ids = _READERS[column](list(rows[column]), tokenizer, where)
    empty = next((row for row, ids in enumerate(token_ids) if not ids), None)
    if empty is not None:
        raise ConfigError(f"{where}: row {empty} has an empty prompt; fill it or leave the row out")
    columns = {name: list(rows[name]) for name in rows.column_names if name not in (column, "messages")}
    if column == "messages":  # a reward model may read them through a chat template of its own
        columns[column] = [_present(messages) for messages in rows[column]]
    questions, became = _fit(Questions(token_ids, texts, columns, summary=""), config, where, tokenizer)
    shortest, longest = (pick(len(ids) for ids in questions.token_ids) for pick in (min, max))
    return replace(
        questions, summary=f"prompts.{part}: {len(questions)} prompts of {shortest} to {longest} tokens{became}"
    )


def _prompt_column(config: PromptsConfig, names: list[str], where: str) -> str:
    present = [name for name in COLUMNS if name in names]
    if config.column is not None:
        if config.column not in names:
            raise ConfigError(
                f"{where} has no column `{config.column}` (prompts.column); it has {', '.join(names)}; rename one, or "
                "change prompts.column"
            )
        return config.column
    if not present:
        raise ConfigError(
            f"{where} has none of the columns {', '.join(COLUMNS)}; it has {', '.join(names)}; rename one"
        )
    if len(present) > 1:
        raise ConfigError(f"{where} has the columns {' and '.join(present)}; say which one with prompts.column")
    return present[0]


def _fit(
    questions: Questions, config: PromptsConfig, where: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Questions, str]:
    """Apply `prompts.too_long`; the second answer says to how many, for the summary."""
    limit = config.max_tokens
    long = [row for row, ids in enumerate(questions.token_ids) if len(ids) > limit]
    if not long:
        return questions, ""
    if config.too_long == "error":
        first, longest = len(questions.token_ids[long[0]]), max(len(questions.token_ids[row]) for row in long)
        raise ConfigError(
            f"{where}: row {long[0]} has {first} tokens, more than prompts.max_tokens={limit} ({len(long)} of "
            f"{len(questions)} prompts are longer, the longest has {longest}); raise prompts.max_tokens, or set "
            "prompts.too_long to skip or truncate"
        )
    if config.too_long == "skip":
        dropped = set(long)
        keep = [row for row in range(len(questions)) if row not in dropped]
        if not keep:
            raise ConfigError(
                f"{where}: all {len(questions)} prompts are longer than prompts.max_tokens={limit}, and "
                "prompts.too_long=skip leaves none; raise prompts.max_tokens"
            )
        kept = questions.pick(keep, seeds=[0] * len(keep))
        became = f"; {len(long)} longer than prompts.max_tokens={limit} were left out"
        return replace(questions, token_ids=kept.token_ids, texts=kept.texts, columns=kept.columns), became
    token_ids, texts = list(questions.token_ids), list(questions.texts)
    for row in long:
        token_ids[row] = token_ids[row][-limit:]
        texts[row] = tokenizer.decode(token_ids[row], skip_special_tokens=False)
    became = f"; {len(long)} were longer and lost their first tokens"
    return replace(questions, token_ids=token_ids, texts=texts), became


def read_texts(values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[list[str], list[list[int]]]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(
                f"{where}: row {row} has {type(value).__name__} in `prompt`, not text; a chat belongs in `messages`"
            )
    return values, tokenizer(values)["input_ids"]


def read_chats(values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[list[str], list[list[int]]]:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{where} has `messages`, but the tokenizer of actor.model has no chat template; add chat_template.jinja "
            "to the model folder, or give the prompts as text in `prompt`"
        )
    texts = [_render(value, tokenizer, f"{where}: row {row}") for row, value in enumerate(values)]
    return texts, tokenizer(texts, add_special_tokens=False)["input_ids"]


def _present(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the keys that `datasets` has filled with None because another message has them."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _are_messages(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(message, dict) for message in entry)


def _render(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    if not messages or not _are_messages(messages):
        raise ConfigError(f'{where} has no list of messages; write [{{"role": "user", "content": "…"}}]')
    present = _present(messages)
    for message in present:
        if "role" not in message or "content" not in message:
            raise ConfigError(
                f'{where} has a message without role or content; write {{"role": "user", "content": "…"}}'
            )
    if present[-1]["role"] == "assistant":
        raise ConfigError(f"{where} ends with an assistant's message, so nothing is left to answer; cut it off")
    try:
        return str(tokenizer.apply_chat_template(present, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program: it raises what it likes
        raise ConfigError(f"{where} does not go through the tokenizer's chat template: {error}") from error


def _read_token_ids(
    values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[str], list[list[int]]]:
    size = len(tokenizer)
    for row, ids in enumerate(values):
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise ConfigError(f"{where}: row {row} has no list of whole numbers in `prompt_token_ids`; mend the row")
        outside = [i for i in ids if not 0 <= i < size]
        if outside:
            raise ConfigError(
                f"{where}: row {row} has token id {outside[0]}, outside the tokenizer's {size} (0 to {size - 1}); "
                "tokenise with the actor's tokenizer"
            )
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in values], values


_READERS: dict[str, Callable[[list[Any], PreTrainedTokenizerBase, str], tuple[list[str], list[list[int]]]]] = {
    "prompt": read_texts,
    "messages": read_chats,
    "prompt_token_ids": _read_token_ids,
}
"""Column → how its values become texts `[rows]` and token ids `[rows][tokens]`."""
