"""What a judge has labelled, how far it can be trusted, and what it has cost: lines for the user, values for JSON.
Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cluster.counts import counted
from orchestrator.data.asking_budget import Spending
from orchestrator.data.labels import Reliability


@dataclass(frozen=True, slots=True)
class CandidateCounts:
    """What the policy has sampled."""

    responses: int
    cut: int
    """Of them, those that have reached their most tokens."""
    alike: int
    """Prompts with too few different responses to compare."""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """The outcome of one `tetrarch label`."""

    pairs: int
    demonstrations: int
    judge: Reliability | None
    """None where nothing was compared."""
    undecided: int
    """Comparisons in which neither response was probable enough to be the better one."""
    unrevised: int
    """Responses whose revision was empty, or cut at its most tokens."""
    refused: int
    """Comparisons or revisions with a question that the judge refused."""
    first_refusal: str | None
    unfinished: int
    """Comparisons or revisions that were not asked to the end."""
    asked: int
    """Answers that this command has got."""
    reused: int
    """Answers of earlier commands."""
    spent: Spending
    """On all answers in the run's folder."""
    cost: float | None
    """Of the same, in the currency of the prices; None without prices."""
    stopped: str | None
    """Why it ended early; None if it has not."""
    candidates: CandidateCounts | None = None
    """None where the rows had the responses."""

    def values(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [counted(self.pairs, "pair")]
        if self.judge is None:
            lines[0] += f", {counted(self.demonstrations, 'demonstration')}"
        if self.candidates is not None:
            lines += _candidate_lines(self.candidates)
        if self.judge is not None:
            lines += _judge_lines(self.judge)
        counts = {
            "undecided": self.undecided,
            "without a whole revision": self.unrevised,
            "refused by the judge": self.refused,
            "not asked to the end": self.unfinished,
        }
        lines += [f"  {count} {what}" for what, count in counts.items() if count]
        if self.first_refusal is not None:
            lines.append(f"  the first refusal: {self.first_refusal}")
        cost = "" if self.cost is None else f", cost {self.cost:.6g}"
        spent = f"{counted(self.spent.prompt_tokens, 'token')} of questions"
        asked = f"{counted(self.asked, 'question')} asked, {counted(self.reused, 'answer')} reused"
        return [*lines, f"  {asked}; in all {spent} and {self.spent.completion_tokens} of answers{cost}"]


def _candidate_lines(found: CandidateCounts) -> list[str]:
    cut = f", {found.cut} of them cut at labelling.candidates.response_tokens" if found.cut else ""
    alike = [f"  {counted(found.alike, 'prompt')} whose responses are all alike"] if found.alike else []
    return [f"  {counted(found.responses, 'response')} sampled{cut}", *alike]


def _judge_lines(judge: Reliability) -> list[str]:
    lines = [f"  {counted(judge.compared, 'comparison')} in both orders, {counted(judge.abstained, 'abstention')}"]
    if judge.agreement is None or judge.position_bias is None:
        return lines
    return [
        *lines,
        f"  the same response wins in both orders: {judge.agreement:.1%}; always the first shown "
        f"{judge.first_both_times:.1%}, always the second {judge.second_both_times:.1%}",
        f"  position bias {judge.position_bias:+.3f} (probability of what is shown first, less 0.5)",
    ]
