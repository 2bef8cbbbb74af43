"""Whether a cluster has the card that a placement names. Pure.

A plan and the nodes that there are flow in; the plan, asking for the card where it must, or a PlacementError flows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.config import LocalPlacement
from cluster.counts import counted
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS, named_by_ray
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups, in_words_of
from cluster.placement.plan import Plan


def asking_for_cards(wanted: Plan, nodes: Sequence[Node]) -> Plan:
    """The plan, which asks for the card of its pools if some nodes have another one. PlacementError if no node has it.

    If no node reports another card, none is asked for: Ray does not know the card of every machine.
    """
    placement = wanted.placement
    if placement is None or isinstance(placement, LocalPlacement) or any(wanted.cards):
        return wanted
    pools, first = as_groups(placement).pools, wanted.pools[0]
    named = pools[first].accelerator
    if named is None or not any(need.gpu for need in wanted.needs):
        return wanted
    card = ACCELERATORS[named].ray_name
    others = [node for node in nodes if node.gpus and node.card not in ("", card)]
    if not others:
        return wanted
    if any(node.card == card for node in nodes):
        return replace(wanted, cards=(card,) * len(wanted.cards))
    seen = others[0]
    more = f" and {counted(len(others) - 1, 'other node')}" if len(others) > 1 else ""
    key = f"placement.pools.{first}.accelerator"
    same = named_by_ray(seen.card)
    fix = f"set it to {' or '.join(same)}" if same else "set it to null, and gpu_memory_gib to the memory of the card"
    raise PlacementError(
        in_words_of(
            placement,
            f"{key}={named}, but Ray reports {seen.card} GPUs on node {seen.name}{more}, and {card} on none; {fix} and "
            f"look at the plan again (or say --cluster auto), or use a cluster with {card} GPUs",
        )
    )
