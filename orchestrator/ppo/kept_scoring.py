"""The scoring passes over rows that keepers keep: a keeper cuts its rows for the ranks, the driver calls these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ROLES
from orchestrator.groups.assignments import contiguous
from orchestrator.groups.kept_rows import KeeperRows, KeptRows
from orchestrator.groups.reward import Scores
from orchestrator.groups.scoring import Roles, class_of
from orchestrator.groups.spread import Spread
from orchestrator.ppo.row_shard import RowShard, ScoringPass
from roles.batch import Prompts, Rollouts, Sequences
from roles.packing import balance
from roles.rollout_facts import RolloutFacts
from roles.scored_parts import ROWS_OF_A_RANK


def ranks_of_keepers(ranks: int, rows: Sequence[KeeperRows]) -> list[range]:
    """Of each keeper, the ranks of a group that work on its rows: all of them or, where that would give a rank fewer
    than `ROWS_OF_A_RANK`, its own share of them. So calls grow with the ranks, not with keepers times ranks."""
    few = min(len(own.rows) for own in rows) < ROWS_OF_A_RANK * ranks
    return contiguous(ranks, len(rows)) if few and ranks >= len(rows) else [range(ranks)] * len(rows)


@dataclass(frozen=True, slots=True)
class GroupPass:
    """What a group computes of all rows."""

    group: RoleGroup[Any]
    method: Callable[..., Any]
    reads: Callable[[Rollouts], Any]
    """Rollouts → a batch with the fields that the method reads."""
    ranks: list[range]
    """Of each keeper, the ranks that work on its rows."""

    @property
    def one_call(self) -> bool:
        """Whether no rank works for two keepers, so that one call is enough."""
        return self.ranks[0] != self.ranks[-1]


@dataclass(slots=True)
class KeptScoring:
    """The running passes. Those in which every rank works for all keepers start as soon as a keeper has its rows, the
    others when all have."""

    roles: Roles
    keepers: RoleGroup[RowShard]
    rows: Sequence[KeeperRows]
    prompts: Prompts
    facts: dict[int, RolloutFacts] = field(default_factory=dict)
    """Keeper → its rows'."""
    cutting: list[Call[None]] = field(default_factory=list)
    """The keepers' calls, for which those of the ranks wait."""
    _passes: dict[str, GroupPass] = field(init=False)
    """Role → its pass."""
    _cut: dict[str, dict[int, tuple[list[list[int]], list[Any]]]] = field(init=False)
    """Role → keeper → rows of each rank, and references to them."""
    _running: dict[tuple[str, int | None], Spread] = field(default_factory=dict)
    """(role, keeper; None: all of them) → call."""

    def __post_init__(self) -> None:
        models, members = self.roles.models, self.roles.reward.members
        given: dict[str, tuple[Any, ...]] = {
            role: (group, getattr(class_of(role), ROLES[role].scored_by), Sequences.of)
            for role, group in models.items()
        }
        given |= {role: (member.group, member.method, member.reads) for role, member in members.items()}
        self._passes = {
            role: GroupPass(group, method, reads, ranks_of_keepers(len(group), self.rows))
            for role, (group, method, reads) in given.items()
        }
        self._cut = {role: {} for role in given}

    @property
    def spreads(self) -> list[Spread]:
        """All calls to wait for, beside `cutting`."""
        return list(self._running.values())

    def start(self, kept: KeptRows) -> None:
        """Give a keeper its rows, and start what can; returns at once."""
        number, rows = kept.keeper, self.rows[kept.keeper].rows
        facts = self.facts[number] = RolloutFacts.concatenate([part.facts for part in kept.parts])
        cuts: list[ScoringPass] = []
        place: dict[str, int] = {}
        for role, own in self._passes.items():
            ranks = len(own.ranks[number])
            same = [at for at, cut in enumerate(cuts) if cut.reads == own.reads and len(cut.parts) == ranks]
            place[role] = same[0] if same else len(cuts)
            if not same:
                cuts.append(ScoringPass(own.reads, balance(facts.sizes.tolist(), ranks)))
        unsent = not self.roles.policy.environment
        texts = replace(self.prompts.select(rows), token_ids=[[]] * len(rows)) if unsent else None
        count, parts = sum(len(cut.parts) for cut in cuts), [part.rollouts for part in kept.parts]
        call, shares = self.keepers.scatter(number, RowShard.take, count, rows.start, texts, cuts, *parts)
        self.cutting.append(call)
        for role, own in self._passes.items():
            cut, first = cuts[place[role]], sum(len(cut.parts) for cut in cuts[: place[role]])
            found = self._cut[role]
            found[number] = (cut.parts, shares[first : first + len(cut.parts)])
            if not own.one_call:
                self._running[role, number] = Spread.start(own.group, own.method, *found[number])
            elif len(found) == len(self.rows):
                every = [found[keeper] for keeper in range(len(self.rows))]
                joined = ([rank for one in every for rank in one[part]] for part in (0, 1))
                self._running[role, None] = Spread.start(own.group, own.method, *joined)

    def answers(self, keeper: int) -> dict[str, Spread]:
        """Field of `Scored` → the pass over a keeper's rows, after all have ended."""
        return {ROLES[role].fills: self._of(role, keeper) for role in self.roles.models}

    def scores(self, keeper: int) -> Scores:
        """What scores a keeper's rows, after all passes have ended."""
        reward = self.roles.reward
        return Scores({role: self._of(role, keeper) for role in reward.members}, reward.how, self.facts[keeper].paid)

    def _of(self, role: str, keeper: int) -> Spread:
        if not self._passes[role].one_call:
            return self._running[role, keeper]
        return self._running[role, None].of_ranks(self._passes[role].ranks[keeper])
