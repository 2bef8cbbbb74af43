"""How the ranks of a group are made: places, a class and its arguments flow in, started ranks flow out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.placement.plan import Slot
from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.usage import BY_DRIVER, CallOrigin
from cluster.ranks.watch import STARTED, Rank
from cluster.ranks.worker import remote_worker


@dataclass(frozen=True, slots=True)
class GrantedSlot:
    """A slot of the plan on a real node."""

    slot: Slot
    node: str
    """Name of the real node."""
    node_id: str
    """Ray's id of the node."""
    strategy: Any
    """Ray's scheduling strategy that places a worker there."""
    devices: tuple[str, ...] = ()
    """Names of its GPUs on the node, for CUDA_VISIBLE_DEVICES."""


@dataclass(frozen=True, slots=True)
class Making:
    """How the ranks of a group are made, and made again."""

    role: str
    source: tuple[str, str]
    """Module and qualified name of the role's class."""
    arguments: Sequence[tuple[Any, ...]]
    places: Sequence[GrantedSlot]
    log_dir: Path
    environment: Mapping[str, str]
    distributed: bool
    replaceable: bool
    inner: tuple[str, str] | None
    """Module and qualified name of what gives the spans that the role records inside its calls; None: it records
    none."""

    def begin(self, lives: Mapping[int, int]) -> tuple[list[Rank], Call[None]]:
        """Start the processes of some ranks (number → how often it has been started before); returns them and the
        running construction of their roles."""
        ranks = [self._start_worker(self.places[number], life) for number, life in lives.items()]
        STARTED.add(ranks, replaceable=self.replaceable)
        asked = CallOrigin(time.time(), BY_DRIVER)
        meeting = ranks[0].worker.rendezvous.remote() if self.distributed else None
        answers = [
            rank.worker.construct.remote(asked, self.source, self.arguments[number], meeting, self.inner)
            for rank, number in zip(ranks, lives, strict=True)
        ]
        return ranks, Call.of("construct", ranks, answers)

    def _start_worker(self, place: GrantedSlot, life: int) -> Rank:
        slot = place.slot
        log = self.log_dir.absolute() / f"{self.role}-{slot.rank}.log"
        identity = Identity(self.role, slot.rank, place.node, str(log), life)
        own = {
            "RANK": str(slot.rank),
            "WORLD_SIZE": str(len(self.places)),
            "LOCAL_RANK": "0",  # a rank sees only its own GPUs, so the first one is always its own
            "OMP_NUM_THREADS": str(slot.threads),
            "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of a failed call we read the receipt, not the value
        }
        if place.devices and "CUDA_VISIBLE_DEVICES" not in self.environment:
            # The node's bundle holds the cards; the plan says which are this rank's. If Ray were asked for fractions
            # of them, it could give any card of the bundle, and might find no room for the last engine among the
            # fractions.
            own["CUDA_VISIBLE_DEVICES"] = ",".join(place.devices)
        options = {"num_cpus": slot.cpus, "num_gpus": 0, "scheduling_strategy": place.strategy}
        worker = remote_worker().options(**options).remote(identity, {**self.environment, **own})
        return Rank(identity, worker, worker.watch.remote(), worker.pid.remote(), place.node_id)
