"""Whether a cluster can hold a plan; if not, what is short and the smallest change that would fit, in words. Pure.

A plan and the nodes that there are flow in, nothing or a PlacementError flows out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from cluster.capacity.changes import cluster_change, numbers_in, placement_change
from cluster.capacity.matching import assign, fits
from cluster.counts import counted
from cluster.errors import PlacementError
from cluster.placement.node import Node
from cluster.placement.plan import Plan, Slot

SHOWN_LACKS = 3
"""Planned nodes without room that are told."""
WAIT_TOLD_S = 60.0
"""Seconds after which the user is told again what is waited for."""


def check_capacity(wanted: Plan, nodes: Sequence[Node]) -> None:
    """Raise PlacementError, naming the shortage and the fix, if no assignment of real nodes can ever hold the plan."""
    if not fits(wanted, nodes):
        raise PlacementError(f"the cluster is too small: {describe_shortage(wanted, nodes)}")


def describe_shortage(wanted: Plan, nodes: Sequence[Node], *, busy: bool = False) -> str:
    """What each role asks for, what each node has (if `busy`: has free), and the smallest changes that would fit."""
    asked = "; ".join(_describe_role(wanted.of(role)) for role in wanted.roles)
    return (
        f"asked for {_listed(wanted.demands)} ({asked}), each planned node on one real node; "
        f"{'free are' if busy else 'having'} {_listed(nodes) or 'no node at all'}. {_fixes(wanted, nodes, busy)}"
    )


def describe_wait(wanted: Plan, free: Sequence[Node], planned: Collection[int] | None = None) -> str:
    """What the planned nodes of these numbers (None: all) wait for: which have no room in what is free, and of what
    they are short."""
    demands = wanted.demands
    numbers = range(len(demands)) if planned is None else sorted(planned)
    homes = assign([demands[number] for number in numbers], free)
    left = [number for place, number in enumerate(numbers) if place not in homes]
    if not left:
        return f"waiting for Ray to give what is free: {_listed(free)}"
    others = [node for number, node in enumerate(free) if number not in homes.values()]
    told = [_lack(wanted, number, others) for number in left[:SHOWN_LACKS]]
    if len(left) > SHOWN_LACKS:
        told[-1] += f", and {counted(len(left) - SHOWN_LACKS, 'more planned node')}"
    return f"waiting for room: {'; '.join(told)}; free are {_listed(free) or 'no node at all'}"


def waited(since_s: float, left_s: float) -> str:
    """How long something has been waited for, and will be, to follow what it is."""
    return f"(for {since_s:.0f} s by now, at most {left_s:.0f} s more)"


def _lack(wanted: Plan, number: int, others: Sequence[Node]) -> str:
    """What one planned node is short of on that of the other nodes where it is short of least."""
    demand = wanted.demands[number]
    roles = ", ".join(dict.fromkeys(slot.role for slot in wanted.slots if slot.node == number))
    asked = f"planned node {number} ({roles}; {_what(demand)})"
    if not others:
        return f"{asked} finds no other node"
    near = min(others, key=lambda node: (max(demand.gpus - node.gpus, 0), max(demand.cpus - node.cpus, 0)))
    short = [
        counted(demand_of - free_of, what)
        for what, demand_of, free_of in (("GPU", demand.gpus, near.gpus), ("CPU", demand.cpus, near.cpus))
        if demand_of > free_of
    ]
    short += [f"{demand.card} GPUs"] if demand.card not in ("", near.card) else []
    return f"{asked} is short of {' and '.join(short)} on {near.name}, the nearest"


def _fixes(wanted: Plan, nodes: Sequence[Node], busy: bool) -> str:
    if busy and fits(wanted, nodes):
        return "By now there is room: start again"
    fixes = []
    change = placement_change(wanted, nodes)
    if change is not None and wanted.placement is not None:
        old = numbers_in(wanted.placement.model_dump())
        fixes.append(
            "set " + " and ".join(f"placement.{path}: {value} (now {old[path]})" for path, value in change.items())
        )
    cluster = cluster_change(wanted, nodes, raising=not busy)
    grown = [
        f"give {counted(count, 'node')} of ({what}) more CPUs (`ray start --num-cpus={cpus}`)"
        for (what, cpus), count in Counter((_what(node), cpus) for node, cpus in cluster.raised).items()
    ]
    grown += [
        f"add {counted(count, 'node')} of ({what})"
        for what, count in Counter(_what(node) for node in cluster.added).items()
    ]
    fixes.append(" and ".join(grown))
    text = ", or ".join(fixes)
    if busy:
        return f"Wait for other jobs to end, or end them (deadlines.resources_s says how long to wait); or {text}"
    return text[0].upper() + text[1:]


def _listed(nodes: Iterable[Node]) -> str:
    """One line per node, or per group of equal nodes."""
    alike: dict[str, list[Node]] = {}
    for node in nodes:
        alike.setdefault(_what(node), []).append(node)
    return "; ".join(str(own[0]) if len(own) == 1 else f"{len(own)} x ({what})" for what, own in alike.items())


def _what(node: Node) -> str:
    """The resources of a node, without its name."""
    return str(node).removeprefix(f"{node.name}: ")


def _describe_role(slots: Sequence[Slot]) -> str:
    first = slots[0]
    gpus = f" and {counted(round(len(first.gpus) * first.share, 3), 'GPU')}" if first.gpus else ""
    return f"{first.role}: {len(slots)} x {counted(first.cpus, 'CPU')}{gpus}"
