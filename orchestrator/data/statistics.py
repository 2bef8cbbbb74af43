"""What was read from a data set, what was left out and why, and how long the samples are. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.counts import counted
from orchestrator.data.dataset_rows import SourceRows
from roles.text.sample_tokens import TokenSample


@dataclass(slots=True)
class LeftOut:
    """Rows that are left out for one reason."""

    count: int
    first: str
    """Where the first of them stands."""


@dataclass(slots=True)
class DataStatistics:
    """Filled while a data set is read."""

    key: str
    """Key path of its section."""
    rows: int = 0
    kept: int = 0
    """Records that are left."""
    sources: list[str] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    joined: int = 0
    """Records whose prompt and first response are texts without a space between them."""
    joined_as: str = ""
    """Where they meet in the first of them: `colour.Blue`."""
    unwritten_tools: Counter[bool] = field(default_factory=Counter)
    """Records with tools that no template writes: True for chats, False for texts."""
    truncated: int = 0
    """Samples that lost their last tokens."""
    prompt_tokens: list[int] = field(default_factory=list)
    """Of each sample: tokens that are not trained on."""
    response_tokens: list[int] = field(default_factory=list)
    """Of each sample: tokens that are trained on."""

    def add_source(self, source: SourceRows) -> None:
        """Its rows will be read."""
        self.rows += len(source.rows)
        share = f"{len(source.rows)} of " if source.available != len(source.rows) else ""
        self.sources.append(f"{source.where}: {share}{counted(source.available, 'row')}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self.notes.append(text)

    def run_together(self, prompt: str, response: str) -> None:
        """No space stands between them."""
        self.joined += 1
        self.joined_as = self.joined_as or prompt[-8:] + response[:8]

    def leave_out(self, reason: str, place: str) -> None:
        """One row less."""
        self.left_out.setdefault(reason, LeftOut(0, place)).count += 1

    def measure(self, groups: Sequence[Sequence[TokenSample]]) -> None:
        """Count the records that are left and the tokens of their samples."""
        self.kept = len(groups)
        self.response_tokens = [sum(sample.trained) for samples in groups for sample in samples]
        total = [len(sample) for samples in groups for sample in samples]
        self.prompt_tokens = [whole - part for whole, part in zip(total, self.response_tokens, strict=True)]

    def lines(self) -> list[str]:
        """For the user."""
        lines = [f"{self.key}: {counted(self.rows, 'row')}, {self.kept} used, {self.rows - self.kept} left out"]
        if len(self.sources) > 1:
            lines += [f"  {source}" for source in self.sources]
        lines += [f"  {left.count} left out: {why} (first: {left.first})" for why, left in self.left_out.items()]
        lines += [f"  {note}" for note in self.notes]
        for chat, count in sorted(self.unwritten_tools.items()):
            why = "which the chat template does not write" if chat else "for which texts have no place"
            fix = "" if chat else f"; set {self.key}.chat=true"
            lines.append(f"  {counted(count, 'row')} {'has' if count == 1 else 'have'} tools, {why}{fix}")
        if self.joined:
            lines.append(
                f"  {self.joined} texts and responses are joined without a space, as in {self.joined_as!r}; begin "
                f"responses with one, or set {self.key}.chat=true"
            )
        if self.response_tokens:
            both = [sum(pair) for pair in zip(self.prompt_tokens, self.response_tokens, strict=True)]
            named = {"prompt": self.prompt_tokens, "response": self.response_tokens, "together": both}
            lines += [f"  tokens of {name}: {_spread(values)}" for name, values in named.items()]
        if self.truncated:
            whose = "its" if self.truncated == 1 else "their"
            lines.append(f"  {counted(self.truncated, 'sample')} lost {whose} last tokens")
        return lines


def _spread(values: list[int]) -> str:
    ordered = sorted(values)

    def quantile(share: float) -> int:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    mean = sum(ordered) / len(ordered)
    return f"{ordered[0]} to {ordered[-1]}, mean {mean:.1f}, half up to {quantile(0.5)}, 95 % up to {quantile(0.95)}"
