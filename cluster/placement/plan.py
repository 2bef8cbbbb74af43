"""Placement on paper: what each role needs flows in, a `Plan` (role → rank → node → CPUs and GPUs) flows out.

Pure: no Ray, no engine. A form of placement is one variant in `cluster.config` and one function in `_PLANNERS`. Whether
a cluster can hold a plan is checked in `cluster.capacity`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.config import GroupConfig, GroupsPlacement, LocalPlacement, OpenRlhfPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS
from cluster.placement.gpu_assignment import seats
from cluster.placement.gpu_groups import group_of
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups, in_words_of
from cluster.role_table import ENGINES, ROLES, base_role


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """What one role asks of a placement."""

    role: str
    """A name in `cluster.role_table`, or a member of an ensemble of rewards."""
    gpu: bool = False
    """Whether its ranks compute on GPUs."""
    workers: int | None = None
    """Number of CPU processes of a role without a model (a reward function); None: the placement says it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one rank."""

    role: str
    rank: int
    node: int
    """Index of the node in the plan; Ray chooses the real one."""
    cpus: int
    threads: int
    """OMP_NUM_THREADS of each of its processes."""
    gpus: tuple[int, ...] = ()
    """Indices of its GPUs among those that the plan uses on the node; an engine has one for each of its processes."""
    share: float = 1.0
    """Share of each of its GPUs: one divided by the number of processes on that GPU."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All slots, ordered by role and rank."""

    slots: tuple[Slot, ...]
    pools: tuple[str, ...] = ("this machine",)
    """Pool of each node in the plan."""
    cards: tuple[str, ...] = ("",)
    """Kind of GPU that each node in the plan must have; empty: any."""
    placement: PlacementConfig | None = None
    """The placement that the plan was made from, so that changes can be tried; None for a plan made by hand."""
    needs: tuple[RoleNeed, ...] = ()
    """The roles' needs that the plan was made for."""

    def of(self, role: str) -> list[Slot]:
        """The role's slots, by rank."""
        return [slot for slot in self.slots if slot.role == role]

    @property
    def roles(self) -> list[str]:
        """Every role, in the order of the slots."""
        return list(dict.fromkeys(slot.role for slot in self.slots))

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return 1 + max(slot.node for slot in self.slots)

    @property
    def demands(self) -> list[Node]:
        """The resources that the plan needs on each of its nodes; a GPU counts once, however many processes share
        it."""
        here: list[list[Slot]] = [[] for _ in self.cards]
        for slot in self.slots:
            here[slot.node].append(slot)
        return [
            Node(
                f"planned node {node}",
                sum(slot.cpus for slot in own),
                len({gpu for slot in own for gpu in slot.gpus}),
                card,
            )
            for node, (own, card) in enumerate(zip(here, self.cards, strict=True))
        ]

    def demand(self, node: int) -> Node:
        """The resources that the plan needs on node `node`."""
        return self.demands[node]


def plan(placement: PlacementConfig, needs: Sequence[RoleNeed]) -> Plan:
    """Assign a slot to every rank. Raises PlacementError if the placement cannot hold a role."""
    if not needs:
        raise PlacementError("nothing to place: no role asks for a rank")
    made = _PLANNERS[type(placement)](placement, needs)
    return replace(made, placement=placement, needs=tuple(needs))


def ranks_of(placement: PlacementConfig, role: str) -> int:
    """Number of ranks of a role that holds a model; for `rollout`, of engines."""
    if isinstance(placement, LocalPlacement):
        return _local_group(placement, role).ranks
    placement = as_groups(placement)
    group = placement.groups[group_of(placement, role)]
    if role == ENGINES:
        assert group.engines is not None
        return group.engines.number
    return group.nodes * group.gpus_per_node


def tensor_parallel_size(placement: PlacementConfig) -> int:
    """Number of processes of one vLLM engine."""
    if isinstance(placement, LocalPlacement):
        return placement.rollout.tensor_parallel_size
    placement = as_groups(placement)
    engines = placement.groups[group_of(placement, ENGINES)].engines
    assert engines is not None
    return engines.tensor_parallel_size


def engines_neighbours(placement: PlacementConfig) -> tuple[str, ...]:
    """The roles that share the engines' GPUs."""
    if isinstance(placement, LocalPlacement):
        return ()
    placement = as_groups(placement)
    return placement.groups[group_of(placement, ENGINES)].roles


def _local(placement: LocalPlacement, needs: Sequence[RoleNeed]) -> Plan:
    """All roles on one node; on GPUs every rank has GPUs of its own."""
    slots: list[Slot] = []
    used = 0
    for need in needs:
        if base_role(need.role) not in ROLES:
            named = ", ".join(name for name, value in placement if isinstance(value, GroupConfig))
            raise PlacementError(f"placement has no group for the role {need.role!r}; it has {named}")
        group = _local_group(placement, need.role)
        processes = placement.rollout.tensor_parallel_size if need.role == ENGINES else 1
        for rank in range(group.ranks if need.workers is None else need.workers):
            gpus = tuple(range(used, used + processes)) if need.gpu else ()
            used += len(gpus)
            slots.append(Slot(need.role, rank, 0, group.threads * processes, group.threads, gpus))
    return Plan(tuple(slots))


def _local_group(placement: LocalPlacement, role: str) -> GroupConfig:
    """The group of a role on one machine. A role without a key in `placement` has one rank."""
    groups = {name: value for name, value in placement if isinstance(value, GroupConfig)}
    return groups.get(base_role(role), GroupConfig())


def _groups(placement: GroupsPlacement, needs: Sequence[RoleNeed]) -> Plan:
    """Every group on the nodes of its pool; each role without a model on the node with most free CPUs."""
    with_model = [need.role for need in needs if need.workers is None]
    taken = {group_of(placement, role) for role in with_model}
    placed = seats(placement, taken)
    slots: list[Slot] = []
    for role in with_model:
        name = group_of(placement, role)
        group = placement.groups[name]
        width = group.engines.tensor_parallel_size if role == ENGINES and group.engines else 1
        for rank, first in enumerate(range(0, len(placed[name]), width)):
            own = placed[name][first : first + width]
            gpus = tuple(seat.gpu for seat in own)
            slots.append(Slot(role, rank, own[0].node, group.cpus_per_rank * width, group.cpus_per_rank, gpus))
    nodes = sorted({seat.node: seat.pool for own in placed.values() for seat in own}.items())
    pools = tuple(pool for _, pool in nodes)
    cards = tuple(_card(placement.pools[pool].accelerator) for pool in pools)
    if len(set(cards)) == 1:
        cards = ("",) * len(cards)  # any card: the pools do not differ
    capacity = [float(placement.pools[pool].cpus_per_node) for pool in pools]
    demands = Plan(tuple(slots), pools, cards).demands
    left = [cpus - demand.cpus for demand, cpus in zip(demands, capacity, strict=True)]
    for need in needs:
        for rank in range(need.workers or 0):
            node = left.index(max(left))
            slots.append(Slot(need.role, rank, node, 1, 1))
            left[node] -= 1
    made = Plan(_shared(slots), pools, cards)
    for node, (demand, cpus) in enumerate(zip(made.demands, capacity, strict=True)):
        if (asked := demand.cpus) > cpus:
            here = ", ".join(f"{role} {count}" for role, count in _cpus(made, node).items())
            raise PlacementError(
                f"placement.pools.{pools[node]}.cpus_per_node={cpus:g} is less than the {asked:g} CPUs that the ranks "
                f"on such a node ask for ({here}); use {asked:g}, or a lower cpus_per_rank"
            )
    return made


def _card(accelerator: str | None) -> str:
    """Ray's name of a card, which leaves its memory out; empty without a card."""
    return ACCELERATORS[accelerator].ray_name if accelerator else ""


def _openrlhf(placement: OpenRlhfPlacement, needs: Sequence[RoleNeed]) -> Plan:
    try:
        return _groups(as_groups(placement), needs)
    except PlacementError as error:
        raise PlacementError(in_words_of(placement, str(error))) from None


_PLANNERS: dict[type, Callable[[Any, Sequence[RoleNeed]], Plan]] = {
    LocalPlacement: _local,
    GroupsPlacement: _groups,
    OpenRlhfPlacement: _openrlhf,
}


def _shared(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The slots with their shares of a GPU: one divided by the number of processes on it."""
    living = Counter((slot.node, gpu) for slot in slots for gpu in slot.gpus)
    return tuple(
        replace(slot, share=1 / max(living[slot.node, gpu] for gpu in slot.gpus)) if slot.gpus else slot
        for slot in slots
    )


def _cpus(made: Plan, node: int) -> Counter[str]:
    asked: Counter[str] = Counter()
    for slot in made.slots:
        asked[slot.role] += slot.cpus if slot.node == node else 0
    return +asked
