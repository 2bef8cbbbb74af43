"""How far the clocks of the nodes are apart, so that times of all ranks can be drawn on the driver's clock.

Cristian's method: a rank of each other node is asked for its time. Its clock said that between question and answer, so
the middle of both is wrong by half the round trip at most. Of the latest answers the one with the shortest round trip
counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from cluster.ranks.watch import Rank

FIRST, KEPT = 5, 20
"""Questions at the first look, and latest answers of a node among which the best counts: clocks drift."""
CLOCK_ANSWER_S = 1.0
"""Seconds to wait for an answer; without one, what was known before counts."""


class NodeClocks:
    """The clocks of the nodes other than the driver's."""

    def __init__(self, here: Callable[[], str] | None = None, wait: Callable[[Any], Any] | None = None) -> None:
        """`here`: the driver's node; `wait`: the answer behind a reference, None if there is none in time."""
        self._here = here or (lambda: str(ray.get_runtime_context().get_node_id()))
        self._wait = wait or _answer
        self._found: dict[str, deque[tuple[float, float]]] = {}
        """Node → (round trip, seconds ahead) of its latest answers."""

    def ahead(self, ranks: Sequence[Rank]) -> dict[str, float]:
        """Name of each rank → seconds that the clock of its node is ahead of the driver's; 0 where nobody answers."""
        here = self._here()
        others = {rank.node_id: rank for rank in reversed(ranks) if rank.node_id != here}
        for node, rank in others.items():
            found = self._found.setdefault(node, deque(maxlen=KEPT))
            for _ in range(1 if found else FIRST):
                asked = time.time()
                told = self._wait(rank.worker.now.remote())
                answered = time.time()
                if told is None:
                    break
                found.append((answered - asked, told - (asked + answered) / 2))
        best = {node: min(found)[1] if found else 0.0 for node, found in self._found.items()}
        return {rank.identity.name: best.get(rank.node_id, 0.0) for rank in ranks}


def _answer(reference: Any) -> Any:
    ready, _ = ray.wait([reference], timeout=CLOCK_ANSWER_S)
    try:
        return ray.get(ready[0]) if ready else None
    except ray.exceptions.RayError:  # it has died: whoever waits for its work will say so
        return None
