"""What a rank reports of its work: its calls, what it did and waited for inside them, and its memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from cluster.ranks.card_use import CardUse
from cluster.ranks.host_memory import MemorySeries
from cluster.ranks.identity import Identity

T = TypeVar("T")
BY_DRIVER = ""
"""Name of the driver among those who call ranks; a rank's is `role number`."""
caller = BY_DRIVER
"""The name of this process."""
KEPT_SPANS = 20_000
"""Most spans that are kept where nobody asks for them; the oldest go first."""


class CallOrigin(NamedTuple):
    """Who has called a method, and when."""

    at: float
    """Wall-clock seconds of the caller's node."""
    by: str
    """`BY_DRIVER`, or the name of a rank."""


class RankCall(NamedTuple):
    """A call of a method of a role."""

    began: float
    """Wall-clock seconds, as `ended`."""
    ended: float
    method: str
    asked: CallOrigin


class InnerSpan(NamedTuple):
    """Something that a process did or waited for inside a call, or a count at a moment."""

    began: float
    """Wall-clock seconds, as `ended`."""
    ended: float
    name: str
    thread: int
    """Identity of the thread; spans of one thread nest."""
    facts: Mapping[str, Any]
    """What is known of it. A count has its number as `value`."""


@dataclass(frozen=True, slots=True)
class RankUsage:
    """Work and memory of one rank since the last report."""

    pid: int
    busy: list[RankCall]
    series: MemorySeries
    """Memory of its process and its descendants: wall-clock second → bytes (PSS)."""
    cards: CardUse | None
    """Use of its cards; None without a GPU."""
    inner: list[InnerSpan] = field(default_factory=list)
    """What the role did inside the calls, and its waits for other ranks."""
    thread: int = 0
    """The thread of the calls."""

    def shifted(self, ahead: Mapping[str, float], who: Identity) -> RankUsage:
        """The report with all times on the driver's clock. `ahead`: name of a rank → seconds that the clock of its node
        is ahead of the driver's."""
        if not any(ahead.values()):
            return self
        own = ahead.get(who.name, 0.0)
        busy = [
            RankCall(
                c.began - own, c.ended - own, c.method, CallOrigin(c.asked.at - ahead.get(c.asked.by, 0.0), c.asked.by)
            )
            for c in self.busy
        ]
        inner = [span._replace(began=span.began - own, ended=span.ended - own) for span in self.inner]
        cards = self.cards
        if cards is not None:
            cards = replace(cards, samples=[replace(s, at=s.at - own) for s in cards.samples])
        series = {round(second - own): held for second, held in self.series.items()}
        return replace(self, busy=busy, inner=inner, cards=cards, series=series)


@dataclass(frozen=True, slots=True)
class Usage:
    """Work of the ranks since the last report, and the highest memory so far in GiB."""

    busy: list[tuple[float, float]]
    """When any rank was running a method of its role: wall-clock seconds, from and to; not in order."""
    host_peak: float
    """Highest memory of a node: the sum over our ranks and their children; on the driver's node also the driver, and
    Ray's own processes if this run started Ray. Proportional set sizes: a shared page counts once."""
    ranks: list[tuple[Identity, RankUsage]]
    """The report of every rank, with times on the driver's clock."""


def drained(kept: deque[T]) -> list[T]:
    """All of `kept`, which other threads may append to; `kept` loses them."""
    return [kept.popleft() for _ in range(len(kept))]


WAITS: deque[InnerSpan] = deque(maxlen=KEPT_SPANS)
"""The waits of this process for ranks, oldest first."""


def reported(inner: Callable[[], Sequence[tuple[Any, ...]]] | None) -> list[InnerSpan]:
    """The waits and, from `inner`, what the role recorded since the last report."""
    return [*drained(WAITS), *(InnerSpan(*span) for span in (inner() if inner else ()))]
