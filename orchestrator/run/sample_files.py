"""All samples of a step as a Parquet file, a row a sample: the sample ledger in full.

A step's samples flow in, `samples/step-N.parquet` flows out. What became of each sample is in the columns `FATES`, from
which the step's line of `ledger.jsonl` is made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.report import SampleFilesConfig
from orchestrator.run.sample_ledger import LedgerLine
from roles.durable import replace_durably

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor

    from roles.batch import Scored


@dataclass(frozen=True, slots=True)
class StepSamples:
    """All samples of a step, in the order of the batch."""

    step: int
    scored: Scored
    prompt_ids: Sequence[int]
    """Of each prompt that was drawn, its row among the training prompts; its responses are neighbours in the batch."""
    seeds: Sequence[int | None]
    """Sampling seed of each sample."""
    trained: Collection[int]
    """Rows of the batch that were in the update."""
    dropped: Mapping[int, str]
    """Row of the batch → why it was left out of the update."""
    environment: bool
    """Whether the samples are conversations with an environment, which pays for them."""
    named: Mapping[str, Tensor]
    """Such as `reward/polite` → float64 `[batch]`: named numbers of rewards and environments, scores of an ensemble's
    members."""
    per_token: Mapping[str, Tensor]
    """Name → float32 `[batch, time]`, what may be kept of each token."""

    @property
    def fates(self) -> dict[str, list[Any]]:
        """The columns `FATES`."""
        size = len(self.scored)
        each = size // len(self.prompt_ids)
        return {
            "version": self.scored.rollouts.versions.tolist(),
            "prompt_id": [prompt for prompt in self.prompt_ids for _ in range(each)],
            "response_id": list(range(each)) * len(self.prompt_ids),
            "trained": [row in self.trained for row in range(size)],
            "dropped": [self.dropped.get(row) for row in range(size)],
        }

    @property
    def line(self) -> LedgerLine:
        """The step's line of the ledger."""
        return LedgerLine.of(self.fates)


ROWS_OF_A_GROUP = 512
"""Rows of a Parquet file that are stored together: who wants one sample reads as many."""


def write_samples(samples: StepSamples, config: SampleFilesConfig, path: Path) -> None:
    """Write the file `path`; it is on the disk on return."""
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(samples_table(samples, config), sink, compression="zstd", row_group_size=ROWS_OF_A_GROUP)
    path.parent.mkdir(exist_ok=True)
    replace_durably(path, sink.getvalue().to_pybytes())


def samples_table(samples: StepSamples, config: SampleFilesConfig) -> pyarrow.Table:
    """The table of a step."""
    import pyarrow

    columns = _facts(samples) | (_texts(samples) if config.texts else {}) | _tokens(samples, config.token_columns)
    return pyarrow.table(columns)


def _facts(samples: StepSamples) -> dict[str, pyarrow.Array]:
    """What is kept of each sample in any case."""
    import pyarrow

    from roles.losses.kl_estimators import k1

    scored, fates = samples.scored, samples.fates
    rollouts, generated = scored.rollouts, scored.rollouts.response_mask
    lengths = generated.sum(1)
    kl = (k1(scored.old_logprobs, scored.reference_logprobs) * generated).sum(1)
    plain = {
        "step": pyarrow.array([samples.step] * len(scored), pyarrow.int64()),
        **{name: pyarrow.array(fates[name], pyarrow.int64()) for name in ("version", "prompt_id", "response_id")},
        "seed": pyarrow.array(samples.seeds, pyarrow.int64()),
        "score": pyarrow.array(scored.scores.numpy()),
        "kl": pyarrow.array(kl.numpy()),
        "prompt_length": pyarrow.array(_first_generated(generated).numpy()),
        "length": pyarrow.array(lengths.numpy()),
        "finished": pyarrow.array(rollouts.finished.numpy()),
        "trained": pyarrow.array(fates["trained"], pyarrow.bool_()),
        "dropped": pyarrow.array(fates["dropped"], pyarrow.string()),
    }
    if any(name.startswith("score/") for name in samples.named):
        plain["disagreement"] = pyarrow.array(scored.disagreement.numpy())
    if samples.environment:
        turns = (generated[:, 1:] & ~generated[:, :-1]).sum(1)
        plain |= {
            "turns": pyarrow.array(turns.numpy()),
            "environment_reward": pyarrow.array(rollouts.turn_rewards.sum(1).numpy()),
        }
    return plain | {name: pyarrow.array(numbers.numpy()) for name, numbers in samples.named.items()}


def _texts(samples: StepSamples) -> dict[str, pyarrow.Array]:
    """Prompt, response and, of chats, all messages (the prompts' column `messages`)."""
    import pyarrow

    rollouts, chats = samples.scored.rollouts, "messages"
    texts = {"prompt": rollouts.prompts, "response": rollouts.responses}
    found = {name: pyarrow.array(map(encodable, rows), pyarrow.string()) for name, rows in texts.items()}
    if chats not in rollouts.columns:
        return found
    talks = [
        None if chat is None else [*chat, *([] if samples.environment else [{"role": "assistant", "content": said}])]
        for chat, said in zip(rollouts.columns[chats], rollouts.responses, strict=True)
    ]
    form = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    rows = [None if chat is None else [_message(said) for said in chat] for chat in talks]
    return found | {chats: pyarrow.array(rows, form)}


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    return {key: encodable(message.get(key)) for key in ("role", "content")}


def encodable(value: Any) -> str:
    """A text as a file can hold it: half of a surrogate pair, which is no character, becomes `?`; another value becomes
    JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")


def _tokens(samples: StepSamples, names: Collection[str]) -> dict[str, pyarrow.Array]:
    """A list for each sample: of its tokens after the prompt, or of the prompt's."""
    import pyarrow
    import torch

    if not names:
        return {}
    rollouts = samples.scored.rollouts
    place, begin = torch.arange(rollouts.token_ids.shape[1]), _first_generated(rollouts.response_mask).unsqueeze(1)
    after = (place >= begin) & (place < rollouts.lengths.unsqueeze(1))

    def lists(values: Tensor, where: Tensor) -> pyarrow.Array:
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), where.sum(1).cumsum(0)]).int()
        return pyarrow.ListArray.from_arrays(pyarrow.array(ends.numpy()), pyarrow.array(values[where].numpy()))

    found = {}
    if "token_ids" in names:
        ids = rollouts.token_ids.int()
        found["prompt_token_ids"] = lists(ids, place < begin)
        found["token_ids"] = lists(ids, after)
        found["generated"] = lists(rollouts.response_mask, after)
    return found | {name: lists(samples.per_token[name], after) for name in names if name != "token_ids"}


def _first_generated(generated: Tensor) -> Tensor:
    """int64 `[batch]`: tokens before the first generated one, from a mask `[batch, time]`."""
    return generated.int().argmax(1)
