"""The nodes of the Ray cluster that this process is attached to: Ray's resources flow in, Nodes flow out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ray
from ray._private.state import available_resources_per_node

from cluster.estimate.memory import GIB
from cluster.placement.node import Node

CARD = "accelerator_type:"
"""Prefix of Ray's resource that names the kind of GPU of a node; such a node has 1 of it."""


def living_nodes(*, free: bool, but: Collection[str] = ()) -> list[Node]:
    """The living nodes, but for those with the ids `but`, with their resources, or (`free`) with what is free of
    them."""
    left = available_resources_per_node() if free else {}
    living = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in but]
    return [
        # A node that has joined just now: nothing of it is known to be free.
        as_node(node["NodeManagerHostname"], left.get(node["NodeID"], {}) if free else node["Resources"])
        for node in living
    ]


def as_node(name: str, resources: Mapping[str, float]) -> Node:
    """A node from Ray's resources. Its memory is what was free when Ray started there, including the object store."""

    def amount(kind: str) -> float:
        return resources.get(kind, 0.0)

    cards = sorted((kind.removeprefix(CARD) for kind in resources if kind.startswith(CARD)), key=len)
    memory = (amount("memory") + amount("object_store_memory")) / GIB
    return Node(name, amount("CPU"), amount("GPU"), cards[0] if cards else "", memory)
