"""A data set to learn from → tokens of every sample, which of them are trained on, and what was read.

The one way from the configuration to samples: sources are read, rows of any format become records
(`orchestrator.data.records`), records are rendered and tokenised (`roles.text.sample_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from cluster.counts import counted
from orchestrator.config.data import RecordsConfig
from orchestrator.data.dataset_rows import SourceRows, load_sources
from orchestrator.data.record_values import BadRecord, NothingToLearn
from orchestrator.data.records import TURN, Record, RecordKind, format_of, repeats_prompt
from orchestrator.data.statistics import DataStatistics
from orchestrator.display_text import printable
from orchestrator.errors import ConfigError
from roles.text.messages import Messages
from roles.text.prompt_tokens import shown_prompt, writes_tools
from roles.text.sample_tokens import RenderedSample, Text, TokenSample, as_messages, render_sample, sample_tokens
from roles.text.template_errors import BrokenTemplate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Samples:
    """What is learned from; a group is all responses of one record."""

    groups: list[list[TokenSample]]
    values: list[tuple[float, ...]]
    """Of each group, as in `Record.values`."""
    certainty: list[float]
    """Of each group, as in `Record.certainty`."""
    statistics: DataStatistics
    example: str
    """For the user: the first sample as it was given and as the model reads it."""

    def __len__(self) -> int:
        return len(self.groups)

    def ends(self, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
        """Tokens of the chat template, such as `<|im_end|>`, with which it is learned to end a response: id → text."""
        added = tokenizer.added_tokens_decoder.keys() - {tokenizer.eos_token_id}
        last = {sample.token_ids[-1] for group in self.groups for sample in group if sample.trained[-1]}
        return {token: str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(last & added)}

    def cut(self, tokens: int) -> Samples:
        """No sample longer than so many tokens; those that leave nothing to learn are left out."""
        self.statistics.truncated = sum(len(sample) > tokens for group in self.groups for sample in group)
        groups = [[sample.first(tokens) for sample in group] for group in self.groups]
        empty = [number for number, group in enumerate(groups) if not all(any(sample.trained) for sample in group)]
        return replace(self, groups=groups).without(empty, f"no response within {tokens} tokens")

    def without(self, numbers: Sequence[int], reason: str) -> Samples:
        """Without some groups, for a reason that the statistics tell. ConfigError if none is left."""
        dropped = set(numbers)
        for number in numbers:
            self.statistics.leave_out(reason, f"sample {number}")
        kept = [number for number in range(len(self)) if number not in dropped]
        groups = [self.groups[number] for number in kept]
        self.statistics.measure(groups)
        if not groups:
            raise _nothing_left(self.statistics)
        values, certainty = [self.values[number] for number in kept], [self.certainty[number] for number in kept]
        return replace(self, groups=groups, values=values, certainty=certainty)


def read_samples(config: RecordsConfig, key: str, kind: RecordKind, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """All sources of the section `key`, whose rows are of one kind. ConfigError for a row that cannot be read, unless
    `bad_rows` says to skip it, and if no row is left."""
    statistics = DataStatistics(key)

    def rendering(record: Record) -> list[RenderedSample]:
        if _run_together(record):
            statistics.run_together(str(record.prompt), str(record.responses[0]))
        samples = [render_sample(tokenizer, record.prompt, response, record.tools) for response in record.responses]
        if record.tools and not (samples[0].chat and writes_tools(tokenizer)):
            statistics.unwritten_tools[samples[0].chat] += 1
        return samples

    found = read_records(config, statistics, kind, rendering)
    records, rendered = [record for record, _ in found], [samples for _, samples in found]
    tokens = iter(sample_tokens(tokenizer, [sample for samples in rendered for sample in samples]))
    groups = [[next(tokens) for _ in samples] for samples in rendered]
    statistics.measure(groups)
    name = "chosen" if kind == "preferences" else "response"
    given = {"prompt": records[0].prompt, name: records[0].responses[0]}
    shown = shown_prompt(tokenizer, given, groups[0][0].token_ids, chat=rendered[0][0].chat)
    lines = [f"{key}, as the model reads it:", *(f"  {line}" for line in shown.splitlines())]
    values, certainty = [record.values for record in records], [record.certainty for record in records]
    return Samples(groups, values, certainty, statistics, printable("\n".join(lines), keep="\n"))


def read_records(
    config: RecordsConfig, statistics: DataStatistics, kind: RecordKind, use: Callable[[Record], T]
) -> list[tuple[Record, T]]:
    """The records of all sources, each with what `use` makes of it; a ValueError of `use` means a bad row. Errors are
    those of `read_samples`."""
    found: list[tuple[Record, T]] = []
    for source in load_sources(config, statistics.key):
        statistics.add_source(source)
        found += _of_source(source, config, kind, use, statistics)
    statistics.kept = len(found)
    if not found:
        raise _nothing_left(statistics)
    return found


def _nothing_left(statistics: DataStatistics) -> ConfigError:
    return ConfigError("\n".join([f"{statistics.key} has no row to learn from", *statistics.lines()]))


def _of_source(
    source: SourceRows,
    config: RecordsConfig,
    kind: RecordKind,
    use: Callable[[Record], T],
    statistics: DataStatistics,
) -> Iterator[tuple[Record, T]]:
    """Its usable records, each with what `use` makes of it."""
    try:
        form = format_of(source.rows.column_names, kind, source.where)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    said = [repeats_prompt(row) for row in source.rows.rows()] if form.prompt_may_repeat else []
    repeating, others = said.count(True), said.count(False)
    if repeated := repeating > others:
        statistics.note(f"{source.where}: `chosen` and `rejected` begin with their prompt; it is not read twice")
    elif repeating:
        told = f"`chosen` and `rejected` begin with their prompt in {counted(repeating, 'row')}, but not in {others}"
        statistics.note(f"{source.where}: {told}; they are read as they are, after the prompt")
    for number, row in enumerate(source.rows.rows()):
        try:
            record = _as_configured(form.record(row, repeated), config)
            yield record, use(record)
        except NothingToLearn as reason:
            statistics.leave_out(str(reason), source.place(number))
        except BrokenTemplate as error:
            raise ConfigError(f"{source.where}: {error}") from None
        except ValueError as error:
            if config.bad_rows == "error":
                raise ConfigError(
                    f"{source.place(number)} has {error}; or set {statistics.key}.bad_rows=skip"
                ) from None
            statistics.leave_out(f"bad row: {error}", source.place(number))


def _as_configured(record: Record, config: RecordsConfig) -> Record:
    """With the system prompt, and texts as messages, where the configuration says so."""
    prompt, responses = record.prompt, record.responses
    if config.chat:
        prompt, responses = _turns(prompt, "user"), tuple(_turns(response, "assistant") for response in responses)
    if config.system is not None:
        if isinstance(prompt, str) and all(isinstance(response, str) for response in responses):
            raise BadRecord("texts, which have no place for the system prompt; set `chat: true`, or leave `system` out")
        prompt, responses = _with_system(prompt, responses, config.system)
    return replace(record, prompt=prompt, responses=responses)


def _run_together(record: Record) -> bool:
    """Whether the last word of a text and the first of its response would be read as one."""
    prompt, response = record.prompt, record.responses[0]
    if not isinstance(prompt, str) or not isinstance(response, str):
        return False
    return bool(prompt) and not prompt[-1].isspace() and not response[:1].isspace()


def _with_system(prompt: Text, responses: tuple[Text, ...], system: str) -> tuple[Text, tuple[Text, ...]]:
    messages = as_messages(prompt, "user")
    said = responses[0] if responses and isinstance(responses[0], list) else []  # none of a prompt alone
    if [*messages, *said][0]["role"] == "system":
        return prompt, responses
    return [{"role": "system", "content": system}, *messages], responses


def _turns(text: Text, role: str) -> Messages:
    """A text as messages: those of a dialogue in the HH format, or one of `role`."""
    if not isinstance(text, str):
        return text
    parts = re.split(r"\n\n(Human|Assistant):", f"\n\n{'Human' if role == 'user' else 'Assistant'}:{text}")
    if not text.startswith(("\n\nHuman:", TURN)) and role == "user":
        return as_messages(text, role)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in turns if said.strip()]
