"""What the nodes of a running cluster are like: resources, clocks, versions.

An address (of Ray, or of the dashboard) flows in, nodes flow out. Nothing on the cluster is changed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.placement.node import Node
from cluster.ranks.worker import clock, versions
from cluster.runtime.jobs import RayJobs
from cluster.runtime.living_nodes import living_nodes
from cluster.runtime.ray_cluster import attached

LOOK_S = 60.0
"""Seconds in which a process must start on a node and answer."""
TRIPS = 4
"""How often a node is asked for its clock: on a busy machine an answer may take seconds."""
HERE = "auto"
"""Ray's name for the cluster that runs on this machine."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What `tetrarch doctor` reports about a node."""

    node: Node
    skew_s: float = 0.0
    """Seconds by which the node's clock is ahead of ours."""
    versions: dict[str, str] = field(default_factory=dict)
    """As `cluster.ranks.worker.version_reader` reads them."""
    problem: str = ""
    """Why the node does not answer; empty if it does."""


def look(address: str) -> list[NodeReport]:
    """A report of every living node of a running cluster."""
    with attached(address):
        ids = [str(node["NodeID"]) for node in ray.nodes() if node["Alive"]]
        answers = [_on(node_id, versions()).remote() for node_id in ids]  # starts a process on every node at once
        nodes = living_nodes(free=False)
        return [_report(*asked) for asked in zip(nodes, ids, answers, strict=True)]


def nodes_of(address: str | None) -> list[Node]:
    """The resources of the living nodes at `address`; None: of the cluster that RAY_ADDRESS names or that runs here."""
    if address is None:
        address = os.environ.setdefault("RAY_ADDRESS", HERE)  # a run that follows uses the planned cluster
    if address.startswith(("http://", "https://")):
        return RayJobs(address).nodes()
    with attached(address):
        return living_nodes(free=False)


def _report(node: Node, node_id: str, answer: Any) -> NodeReport:
    try:
        found = ray.get(answer, timeout=LOOK_S)
        return NodeReport(node, _skew(node_id), found)
    except GetTimeoutError:
        return NodeReport(node, problem=f"no process answered within {LOOK_S:g} s; look at Ray's logs on it")
    except RayError as error:
        return NodeReport(node, problem=f"a process on it failed: {str(error).splitlines()[-1]}")


def _skew(node_id: str) -> float:
    """Seconds by which a node's clock is ahead of ours, accurate to half of the shortest round trip."""
    asked, trips = _on(node_id, clock()), list[tuple[float, float]]()
    for _ in range(TRIPS):  # in the first, the node's process loads the function
        began = time.time()
        theirs: float = ray.get(asked.remote(), timeout=LOOK_S)
        ended = time.time()
        trips.append((ended - began, theirs - (began + ended) / 2))
    return min(trips)[1]


def _on(node_id: str, function: Any) -> Any:
    return function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
