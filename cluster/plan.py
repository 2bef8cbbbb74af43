"""Placement on paper: what each role needs flows in, a `Plan` (role → rank → node → CPUs and GPUs) flows out.

Pure: no Ray, no engine. `cluster.ray_cluster` carries a plan out; `orchestrator.build` asks for one.
A placement is one variant in `cluster.config` and one function here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import GroupConfig, PlacementConfig
from cluster.errors import PlacementError


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """What one role asks of a placement."""

    role: str
    """A group of the placement: actor, critic, reward, reference or rollout."""
    gpus: float = 0.0
    """Of each rank; 0 on CPU. An engine with tensor parallelism asks for as many as it has processes."""
    processes: int = 1
    """Of each rank: an engine's tensor-parallel size."""
    ranks: int | None = None
    """Where the role's own configuration says how many (a reward function's `workers`); null is the placement's."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one rank lives."""

    role: str
    rank: int
    node: int
    """Number of the node in the plan; Ray says which real one it is."""
    cpus: int
    gpus: float
    threads: int
    """OMP_NUM_THREADS of each of its processes."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has, or has left."""

    name: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} GPUs"


@dataclass(frozen=True, slots=True)
class Plan:
    """All slots, ordered by role and rank."""

    slots: tuple[Slot, ...]

    def of(self, role: str) -> list[Slot]:
        """The role's slots, by rank."""
        return [slot for slot in self.slots if slot.role == role]

    @property
    def nodes(self) -> int:
        """How many nodes are asked for."""
        return 1 + max(slot.node for slot in self.slots)

    def demand(self, node: int) -> Node:
        """Everything that the plan puts on its node number `node`."""
        here = [slot for slot in self.slots if slot.node == node]
        return Node(f"planned node {node}", sum(slot.cpus for slot in here), sum(slot.gpus for slot in here))


def plan(placement: PlacementConfig, needs: Sequence[RoleNeed]) -> Plan:
    """Give every rank its slot. Raises PlacementError where the placement cannot hold a role."""
    if not needs:
        raise PlacementError("nothing to place: no role asks for a rank")
    groups = {name: value for name, value in placement if isinstance(value, GroupConfig)}
    slots = []
    for need in needs:
        if need.role not in groups:
            raise PlacementError(f"placement has no group for the role {need.role!r}; it has {', '.join(groups)}")
        group = groups[need.role]
        ranks = group.ranks if need.ranks is None else need.ranks
        cpus = group.threads * need.processes
        slots += [Slot(need.role, rank, 0, cpus, need.gpus, group.threads) for rank in range(ranks)]
    return Plan(tuple(slots))


def check_capacity(wanted: Plan, nodes: Sequence[Node]) -> None:
    """Raise PlacementError, naming the shortage, if no assignment of real nodes can ever hold the plan."""
    unused = sorted(nodes, key=lambda node: (node.gpus, node.cpus))
    for index in range(wanted.nodes):
        demand = wanted.demand(index)
        fitting = [node for node in unused if node.cpus >= demand.cpus and node.gpus >= demand.gpus]
        if not fitting:
            raise PlacementError(f"the cluster is too small: {describe_shortage(wanted, nodes)}")
        unused.remove(fitting[0])


def describe_shortage(wanted: Plan, nodes: Sequence[Node]) -> str:
    """What is asked, by role, and what each node has; and the mend."""
    roles = dict.fromkeys(slot.role for slot in wanted.slots)
    asked = "; ".join(_describe_role(wanted.of(role)) for role in roles)
    demands = "; ".join(str(wanted.demand(index)) for index in range(wanted.nodes))
    having = "; ".join(map(str, nodes)) or "no node at all"
    return (
        f"asked for {demands} ({asked}), each planned node on one real node; having {having}. "
        "Lower `ranks` or `threads` in `placement`, or start Ray with more (`ray start --num-cpus … --num-gpus …`)"
    )


def _describe_role(slots: Sequence[Slot]) -> str:
    first = slots[0]
    gpus = f" and {first.gpus:g} GPUs" if first.gpus else ""
    return f"{first.role}: {len(slots)} x {first.cpus} CPUs{gpus}"
