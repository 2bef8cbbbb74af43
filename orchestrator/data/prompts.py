"""The prompts of a data set. A configuration and a tokenizer flow in; the Prompts of each step flow out, in an order
that depends only on the run's seed."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from cluster.counts import counted, spanned
from orchestrator.config.data import PromptsConfig
from orchestrator.data.dataset_rows import load_sources
from orchestrator.data.epochs import EndlessOrder
from orchestrator.data.prompt_columns import PromptKind, column_values, prompt_column, read_prompts, tools_of
from orchestrator.data.row_files import Rows, Where
from orchestrator.display_text import printable
from orchestrator.errors import CheckpointError, ConfigError
from roles.batch import Prompts
from roles.redaction import without_credentials
from roles.seeds import short_seed, stable_seed
from roles.text.messages import TOOLS
from roles.text.prompt_tokens import shown_prompt


@dataclass(frozen=True, slots=True)
class Questions:
    """All usable prompts of one data set, in the data set's order."""

    token_ids: list[list[int]]
    """Without padding, none longer than `prompts.max_tokens`; empty if an environment begins the conversation."""
    texts: list[str]
    """Texts after the chat template."""
    columns: dict[str, list[Any]]
    """The other columns with the file's values; also `messages`, the prompts if they are chats. With an environment
    all columns."""
    summary: str
    """For the user: the number of prompts, their lengths, and what happened to those that were too long."""
    example: str = ""
    """For the user: one row as it was given and as the model reads it; empty if nothing has been read."""
    where: Where = field(default_factory=lambda: Where("the prompts"))
    """Where the rows stand, for errors."""

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
        """A hash of all tokens; with an environment, of all columns."""
        digest = hashlib.blake2b(digest_size=16)
        for ids in self.token_ids:
            digest.update(array("q", [len(ids), *ids]).tobytes())
        if not any(self.token_ids):
            digest.update(json.dumps(self.columns, sort_keys=True, default=str).encode())
        return digest.hexdigest()


class PromptSource:
    """An endless sequence of training prompts: each pass is a new permutation; the position can be saved."""

    def __init__(self, questions: Questions, seed: int) -> None:
        self._questions = questions
        self._seed = seed
        self._fingerprint = questions.fingerprint()
        self._order = EndlessOrder(len(questions), (seed, "order"))
        self._draws = 0
        self.drawn: list[int] = []
        """The rows that `next` has drawn last."""

    def __len__(self) -> int:
        """Number of usable prompts in the data set."""
        return len(self._questions)

    def next(self, prompts: int, responses_per_prompt: int) -> Prompts:
        """The next `prompts` prompts, each as `responses_per_prompt` consecutive rows with different sampling seeds."""
        self.drawn = self._order.next(prompts)
        rows = [row for row in self.drawn for _ in range(responses_per_prompt)]
        seeds = [stable_seed(self._seed, self._draws, row) for row in range(len(rows))]
        first = [row - row % responses_per_prompt for row in range(len(rows))]
        environments = [short_seed(self._seed, "environment", self._draws, row) for row in first]
        self._draws += 1
        return self._questions.pick(rows, seeds, environments)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain values for a checkpoint."""
        cursor = {**self._order.state_dict(), "draws": self._draws}
        return {**cursor, "seed": self._seed, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position `state`. CheckpointError if data or seed have changed."""
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                "the prompts in prompts.train are not those of the checkpoint (other rows, tokenizer, max_tokens or "
                "too_long); restore them, or start anew with another run_dir"
            )
        if state["seed"] != self._seed:
            raise CheckpointError(f"seed={self._seed}, but the checkpoint has {state['seed']}; resume with that one")
        self._draws = state["draws"]
        self._order.load_state_dict(state)


def with_overlap(heldout: Questions, training: Questions) -> Questions:
    """The held-out prompts; their summary says how many of them are trained on."""
    trained = set(_identities(training))
    both = sum(identity in trained for identity in _identities(heldout))
    if not both:
        return heldout
    told = f"{both} of them {'is' if both == 1 else 'are'} in prompts.train too: an evaluation on what is trained on"
    return replace(heldout, summary=f"{heldout.summary}; {told}")


def _identities(questions: Questions) -> Iterator[str]:
    """Of each row: its tokens, or its columns where an environment makes the prompt of them."""
    for row, ids in enumerate(questions.token_ids):
        columns = {} if ids else {name: column[row] for name, column in questions.columns.items()}
        yield json.dumps([ids, columns], sort_keys=True, default=str)


def heldout_prompts(
    questions: Questions, count: int | None, seed: int, each: int = 1, *, greedy: bool = False
) -> Prompts:
    """The first `count` held-out prompts (None, or if there are fewer: all), each as `each` consecutive rows, always
    with the same sampling seeds; `greedy`: to be answered with the most likely tokens."""
    rows = [row for row in range(len(questions))[:count] for _ in range(each)]
    places = [(row, *([place % each] if place % each else [])) for place, row in enumerate(rows)]
    seeds = [stable_seed(seed, "heldout", *row) for row in places]
    asked = questions.pick(rows, seeds, [short_seed(seed, "environment", "heldout", row) for row in rows])
    return replace(asked, seeds=[None] * len(rows)) if greedy else asked


def read_tasks(config: PromptsConfig, part: str) -> Questions:
    """All rows without change, for an environment that makes the prompts of them."""
    rows, where = part_rows(config, part, lambda rows, where: list(rows.rows()))
    size = len(rows)
    told = f"prompts.{part}: {counted(size, 'task')} for the environment"
    return Questions([[]] * size, [""] * size, rows.columns, told, where=where)


def part_rows(config: PromptsConfig, part: str, identities: Callable[[Rows, Where], list[Any]]) -> tuple[Rows, Where]:
    """The rows of the training prompts or of a set of held-out ones, and where they stand; ConfigError if there are
    none. Held-out rows of several sources are mixed, since an evaluation may answer the first ones alone.

    Args:
        part: the key below `prompts`, such as `train` or `heldout_sets.math`.
        identities: what makes each row a prompt of its own, for `prompts.heldout_fraction`.
    """
    split = part in ("train", "heldout") and config.heldout is None and config.heldout_fraction is not None
    name = "train" if split else part
    dataset = config.dataset(name)
    if dataset is None:
        raise ConfigError("prompts.heldout is null; set prompts.heldout.path to prompts that are never trained on")
    sources = [source.rows for source in load_sources(dataset, f"prompts.{name}")]
    rows, kept = Rows.joined(sources), list(range(sum(map(len, sources))))
    where = Where(f"prompts.{name}.path={without_credentials(dataset.path)}", rows.places)
    if config.heldout_fraction is not None and split:
        held = [is_held_out(identity, config.heldout_fraction) for identity in identities(rows, where)]
        kept = [row for row, out in enumerate(held) if out == (part == "heldout")]
        if not kept:
            raise ConfigError(
                f"prompts.heldout_fraction={config.heldout_fraction:g} leaves none of the {counted(len(rows), 'row')} "
                f"of {where} for {'evaluation' if part == 'heldout' else 'training'}; set another share, or "
                "prompts.heldout.path"
            )
    if part != "train":
        source_of = [number for number, source in enumerate(sources) for _ in range(len(source))]
        kept = [kept[place] for place in evenly([source_of[row] for row in kept])]
    return (rows, where) if kept == list(range(len(rows))) else (rows.picked(kept), where.picked(kept))


def evenly(sources: Sequence[int]) -> list[int]:
    """Row numbers in an order whose every beginning has each source's share of the rows: `[0, 0, 0, 0, 1, 1]` gives
    `[0, 4, 1, 2, 5, 3]`. Rows of one source stay in their order.

    Args:
        sources: number of each row's source.
    """
    sizes, seen, places = Counter(sources), Counter[int](), list[tuple[float, int]]()
    for row, source in enumerate(sources):
        places.append(((seen[source] + 0.5) / sizes[source], row))
        seen[source] += 1
    return [row for _, row in sorted(places)]


def is_held_out(identity: Any, fraction: float) -> bool:
    """Whether a prompt belongs to the share that is held out: its hash says so, whatever other prompts there are."""
    text = json.dumps(identity, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def read_questions(config: PromptsConfig, part: str, tokenizer: PreTrainedTokenizerBase) -> Questions:
    """All training prompts or those of a set of held-out ones, tokenised, with `prompts.too_long` applied."""

    def asked(rows: Rows, where: Where) -> list[Any]:
        return column_values(rows, prompt_column(config.column, rows.column_names, where), where)

    rows, where = part_rows(config, part, asked)
    column, given = prompt_column(config.column, rows.column_names, where), asked(rows, where)
    read = read_prompts(column, given, tokenizer, where, tools=tools_of(config.tools, rows, where))
    token_ids = read.token_ids
    empty = next((row for row, ids in enumerate(token_ids) if not ids), None)
    if empty is not None:
        raise ConfigError(f"{where.row(empty)} has an empty prompt; fill it or leave the row out")
    columns = {name: values for name, values in rows.columns.items() if name not in (column, "messages")}
    if read.kind == "chat":  # a reward model may read them through a chat template of its own
        columns["messages"] = given
    shown = next((row for row, ids in enumerate(token_ids) if len(ids) <= config.max_tokens), 0)
    questions, became = _fit(Questions(token_ids, read.texts, columns, "", where=where), config, tokenizer)
    fitting = token_ids if len(token_ids[shown]) <= config.max_tokens else questions.token_ids  # all cut, none left out
    example = example_of(f"prompts.{part}", shown, given[shown], fitting[shown], tokenizer, read.kind)
    shortest, longest = (pick(len(ids) for ids in questions.token_ids) for pick in (min, max))
    summary = f"prompts.{part}: {counted(len(questions), 'prompt')} of {spanned(shortest, longest, 'token')}{became}"
    if read.kind == "chat" and config.tools is None and any(columns.get(TOOLS, [])):
        summary += f"; their column `{TOOLS}` is not read: the chat template writes it with prompts.tools={TOOLS}"
    return replace(questions, summary=summary, example=example)


def example_of(
    source: str, row: int, given: Any, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, kind: PromptKind
) -> str:
    """One row in lines that a terminal can show."""
    shown = shown_prompt(tokenizer, given, ids, chat=kind != "text")
    lines = [f"{source}, row {row}, as the model reads it:", *(f"  {line}" for line in shown.splitlines())]
    return printable("\n".join(lines), keep="\n")


def _fit(questions: Questions, config: PromptsConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Questions, str]:
    """Apply `prompts.too_long`; also returns a text for the summary with the number of prompts it changed."""
    limit, where = config.max_tokens, questions.where
    long = [row for row, ids in enumerate(questions.token_ids) if len(ids) > limit]
    if not long:
        return questions, ""
    if config.too_long == "error":
        first, longest = len(questions.token_ids[long[0]]), max(len(questions.token_ids[row]) for row in long)
        raise ConfigError(
            f"{where.row(long[0])} has {first} tokens, more than prompts.max_tokens={limit} ({len(long)} of "
            f"{counted(len(questions), 'prompt')}, the longest has {longest}); raise prompts.max_tokens, or set "
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
        columns, there = kept.columns, where.picked(keep)
        return replace(questions, token_ids=kept.token_ids, texts=kept.texts, columns=columns, where=there), became
    token_ids, texts = list(questions.token_ids), list(questions.texts)
    for row in long:
        begins = int(limit > 1 and token_ids[row][0] == tokenizer.bos_token_id)  # a model expects it there
        token_ids[row] = token_ids[row][:begins] + token_ids[row][begins - limit :]
        texts[row] = tokenizer.decode(token_ids[row], skip_special_tokens=False)
    became = f"; {len(long)} were longer and lost their first tokens"
    return replace(questions, token_ids=token_ids, texts=texts), became
