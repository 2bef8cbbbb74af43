"""How far the clocks of the nodes are apart, so that times of all ranks can be drawn on the driver's clock.

Cristian's method: a rank of each other node is asked for its time. Its clock said that between question and answer, so
the middle of both is wrong by half the round trip at most. Of the latest answers the one with the shortest round trip
counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from cluster.ranks.watch import Rank

FIRST, KEPT = 5, 20
"""Questions at the first look, and latest answers of a node among which the best counts: clocks drift."""
CLOCK_ANSWER_S = 1.0
"""Seconds to wait for the answers to one question; a node without one keeps what was known before."""


HowToWait = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]
"""References → number and answer of each that comes in time, as they come."""


class NodeClocks:
    """The clocks of the nodes other than the driver's."""

    def __init__(self, here: Callable[[], str] | None = None, answers: HowToWait | None = None) -> None:
        """`here`: the driver's node; `answers`: how to wait for them."""
        self._here = here or (lambda: str(ray.get_runtime_context().get_node_id()))
        self._answers = answers or _answers
        self._found: dict[str, deque[tuple[float, float]]] = {}
        """Node → (round trip, seconds ahead) of its latest answers."""

    def ahead(self, ranks: Sequence[Rank]) -> dict[str, float]:
        """Name of each rank → seconds that the clock of its node is ahead of the driver's; 0 where nobody answers. All
        nodes are asked at once."""
        here = self._here()
        others = {rank.node_id: rank for rank in reversed(ranks) if rank.node_id != here}
        left = {node: 1 if self._found.get(node) else FIRST for node in others}
        while asked := [node for node, times in left.items() if times]:
            told = self._asked([others[node] for node in asked])
            left = {node: left[node] - 1 for node in asked if node in told}
        best = {node: min(found)[1] for node, found in self._found.items()}
        return {rank.identity.name: best.get(rank.node_id, 0.0) for rank in ranks}

    def _asked(self, ranks: Sequence[Rank]) -> set[str]:
        """Ask each of the ranks, of different nodes, once; the nodes that have answered."""
        told, times, references = set[str](), [], []
        for rank in ranks:
            times.append(time.time())
            references.append(rank.worker.now.remote())
        for number, there in self._answers(references):
            asked, answered, node = times[number], time.time(), ranks[number].node_id
            found = self._found.setdefault(node, deque(maxlen=KEPT))
            found.append((answered - asked, there - (asked + answered) / 2))
            told.add(node)
        return told


def _answers(references: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    left, until = {reference: number for number, reference in enumerate(references)}, time.monotonic() + CLOCK_ANSWER_S
    while left:
        ready, _ = ray.wait(list(left), timeout=max(until - time.monotonic(), 0.0))
        if not ready:
            return
        try:
            answer = ray.get(ready[0])
        except ray.exceptions.RayError:  # it has died: whoever waits for its work will say so
            del left[ready[0]]
            continue
        yield left.pop(ready[0]), answer
