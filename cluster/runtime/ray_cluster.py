"""Plan → Ray placement groups, with a deadline. Starts Ray on this machine, or attaches to a running cluster.

Entering `RayCluster` begins, leaving it ends everything: on success, on an error, on Ctrl-C and on SIGTERM (see
`cluster.runtime.orders`).
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group_table

from cluster.capacity.cards import asking_for_cards
from cluster.capacity.matching import assign
from cluster.capacity.shortage import check_capacity, describe_shortage, describe_wait, waited
from cluster.errors import ClusterError, PlacementError
from cluster.estimate.memory import GIB
from cluster.placement.node import Node
from cluster.placement.plan import Plan
from cluster.ranks import calls, role_group
from cluster.ranks.host_memory import MemorySampler, peak_of_sum
from cluster.ranks.making import GrantedSlot
from cluster.ranks.node_clocks import NodeClocks
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.usage import Usage
from cluster.ranks.watch import STARTED
from cluster.runtime.fork_server import ForkServer, Imports
from cluster.runtime.granted_nodes import GrantedNode, granted_again, granted_nodes, strategy_of
from cluster.runtime.living_nodes import CARD, living_nodes
from cluster.runtime.local_ray import ended, kill_at_once, on_loopback
from cluster.runtime.orders import ORDERS, not_for_children, unheard
from cluster.runtime.private_files import keep_token_private, sessions_folder

START_ATTEMPTS = 2
"""Attempts to start Ray: its own processes have half a minute, which a busy machine may exceed once."""
ANY_AMOUNT = 0.001
"""Amount of the resource that names the kind of GPU of a node: requesting a little is enough to be placed there."""
NODE_ID = "ray.io/node-id"
"""Ray's label with the id of a node."""
RAYS_CHOICE_S = 5.0
"""Seconds in which Ray must find nodes by itself."""
CONNECT_S = 10.0
"""Seconds in which a cluster must accept a connection."""
KEPT_TASKS = "1000"
"""Calls of which Ray's GCS remembers what became of them: of its 100,000 it took 200 MiB more in 2,000 short steps."""


class RayCluster:
    """A Ray cluster on which the plan's resources are reserved."""

    def __init__(
        self,
        plan: Plan,
        *,
        deadline_s: float,
        address: str | None = None,
        object_store_gib: float | None = None,
        imports: Imports | None = None,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        """`waits`: told every few seconds for what the cluster has no room, while that is waited for."""
        self._plan = plan
        self._waits = waits
        self._imports = imports
        self._forks: ForkServer | None = None
        self._deadline_s = deadline_s
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._object_store_gib = object_store_gib or max(1.0, psutil.virtual_memory().total / 10 / GIB)
        self._group: PlacementGroup | None = None
        self._nodes: list[GrantedNode] = []
        self._bound = False  # whether each bundle may be on one node alone
        self._memory = MemorySampler()
        self._clocks = NodeClocks()
        self._peak_bytes = 0

    def __enter__(self) -> Self:
        try:
            self._connect()
            self._reserve()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        told = ORDERS.told
        if told is not None and kind is not told and isinstance(error, KeyboardInterrupt | ClusterError):
            raise told from error  # Ray's own waits raise KeyboardInterrupt for any; ranks may have been told, too

    def places(self, role: str) -> list[GrantedSlot]:
        """The slots of a role's ranks, by rank."""
        assert self._group is not None
        return [
            GrantedSlot(
                slot,
                self._nodes[slot.node].name,
                self._nodes[slot.node].id,
                strategy_of(self._group, slot.node),
                tuple(self._nodes[slot.node].gpus[gpu] for gpu in slot.gpus),
            )
            for slot in self._plan.of(role)
        ]

    def places_again(self, role: str, tell: Callable[[str], None], ranks: Collection[int]) -> list[GrantedSlot]:
        """As `places`, when these ranks are started again: those on a node that is lost have another one. NodeLost if
        none has room; `tell` is told what is waited for."""
        assert self._group is not None
        slots = self._plan.of(role)
        needed = {slots[rank].node for rank in ranks}
        self._nodes = granted_again(
            *(self._group, self._plan, self._nodes, needed), bound=self._bound, deadline_s=self._deadline_s, tell=tell
        )
        return self.places(role)

    def check_places(self, groups: Iterable[RoleGroup[Any]]) -> None:
        """Raise PlacementError if a rank runs on another node than planned, ClusterError if one does not say where. The
        groups must be ready."""
        ranks = [
            (rank, slot) for group in groups for rank, slot in zip(group.ranks, self._plan.of(group.role), strict=True)
        ]
        found = calls.ask([rank for rank, _ in ranks], "node_id")
        for (rank, slot), node_id in zip(ranks, found, strict=True):
            if node_id is None:
                raise ClusterError(f"{rank.identity} does not say on which node it runs: it has died, or hangs")
            if node_id != self._nodes[slot.node].id:
                raise PlacementError(f"{rank.identity} runs on node {node_id}, not on planned node {slot.node}")

    def usage(self) -> Usage:
        """Work and memory of everything that this run has started; memory is sampled about once a second."""
        ranks = STARTED.ranks
        ahead = self._clocks.ahead(ranks)
        answered = [
            (rank.identity, report.shifted(ahead, rank.identity))
            for rank, report in zip(ranks, calls.ask(ranks, "usage"), strict=True)
            if report
        ]
        series = {socket.gethostname(): [self._memory.drain()]}
        if self._address is not None:  # otherwise Ray is our child, and its workers are counted with us
            for who, report in answered:
                series.setdefault(who.node, []).append(report.series)
        self._peak_bytes = max(self._peak_bytes, *map(peak_of_sum, series.values()))
        busy = [(call.began, call.ended) for _, report in answered for call in report.busy]
        return Usage(busy, self._peak_bytes / GIB, answered)

    def stop(self) -> None:
        """End every rank, return the resources and leave Ray (a Ray that we started ends)."""
        self._memory.stop()
        with unheard():
            if ray.is_initialized():
                ended(self._leave)
            if self._forks is not None:
                self._forks.stop()
                self._forks = None

    def _leave(self) -> None:
        role_group.stop_all()
        if self._group is not None and self._address is not None:  # otherwise it ends with Ray
            remove_placement_group(self._group)
        self._group = None
        kill_at_once()
        ray.shutdown()

    def _connect(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # send no usage statistics
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of a failed call we read the receipt, not the value
        if self._address is not None:
            self._attach(self._address)
        else:
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets all other processes go first
            os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", KEPT_TASKS)
            with not_for_children():
                if self._imports:
                    self._forks = ForkServer(self._imports)
                self._start_with_retries()
                ORDERS.listen()
        ORDERS.listen()  # Ray's own handler ends the process with a C++ stack on the terminal

    def _start_with_retries(self) -> None:
        folder = sessions_folder()
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start_local(str(folder))
                return
            except Exception as error:  # Ray raises plain ones
                ray.shutdown()
                if attempt == START_ATTEMPTS:
                    raise ClusterError(
                        f"Ray did not start on this machine: {error} Its logs are in {folder}. If "
                        "the machine is very busy, try again; look for a full /tmp or /dev/shm"
                    ) from error

    def _start_local(self, folder: str) -> None:
        demand = self._plan.demand(0)
        keep_token_private()
        with self._forks.used_by_ray() if self._forks else nullcontext(), on_loopback():
            ray.init(
                address="local",
                num_cpus=math.ceil(demand.cpus),  # logical ones: roles take turns on the real ones
                num_gpus=None if demand.gpus else 0,
                object_store_memory=int(self._object_store_gib * GIB),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=folder,
            )

    def _attach(self, address: str) -> None:
        if address.startswith(("http://", "https://")):
            raise PlacementError(
                f"RAY_ADDRESS={address} is the dashboard's, where jobs go (tetrarch submit); a run attaches to Ray "
                "itself, such as head:6379"
            )
        host, _, port = address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError) as error:
            if address == "auto":
                raise PlacementError("no Ray cluster runs on this machine; set RAY_ADDRESS to the one meant") from error
            raise PlacementError(
                f"no Ray cluster answers at {address!r}: {error}. Start one (`ray start --head`), or unset RAY_ADDRESS "
                "to let Ray run on this machine for the length of the command"
            ) from error

    def _reserve(self) -> None:
        """Reserve one bundle for each planned node, each on a real node of its own."""
        nodes = living_nodes(free=False)
        self._plan = asking_for_cards(self._plan, nodes)
        check_capacity(self._plan, nodes)
        demands = [self._plan.demand(node) for node in range(self._plan.nodes)]
        bundles = [
            {"CPU": demand.cpus, "GPU": demand.gpus, **({CARD + demand.card: ANY_AMOUNT} if demand.card else {})}
            for demand in demands
        ]
        self._grant(bundles)
        assert self._group is not None
        self._nodes = granted_nodes(self._group, self._plan, self._deadline_s)

    def _grant(self, bundles: list[dict[str, float]]) -> None:
        """Wait for all bundles. Ray chooses node after node, and may wait forever although there is room: then our
        own assignment names the nodes. PlacementError once the nodes that are left (Ray notices seconds later that it
        has lost one) are too few even for an empty cluster."""
        began = time.monotonic()
        ends = began + self._deadline_s
        homes: list[str] = []
        self._group = placement_group(bundles, strategy="STRICT_SPREAD")
        while not _granted(self._group, min(RAYS_CHOICE_S, max(ends - time.monotonic(), 0.0))):
            check_capacity(self._plan, living_nodes(free=False))
            free, found = self._room()
            if time.monotonic() >= ends:
                shortage = describe_shortage(self._plan, free, busy=True)
                raise PlacementError(f"no room within {self._deadline_s:g} s: {shortage}")
            if self._waits:
                now = time.monotonic()
                self._waits(f"{describe_wait(self._plan, free)} {waited(now - began, ends - now)}")
            if found != homes and not _granted(self._group, 0):  # it may be what leaves no room: granted just now
                homes = found
                remove_placement_group(self._group)
                chosen = [{NODE_ID: home} for home in homes] or None
                self._bound = chosen is not None
                self._group = placement_group(bundles, strategy="STRICT_SPREAD", bundle_label_selector=chosen)

    def _room(self) -> tuple[list[Node], list[str]]:
        """The free resources of all nodes, and the real node's id for each planned one; no ids if not all fit now."""
        free, ids = living_nodes(free=True), [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        found = assign(self._plan.demands, free)
        return free, [ids[found[n]] for n in range(self._plan.nodes)] if len(found) == self._plan.nodes else []


def _granted(group: PlacementGroup, within_s: float) -> bool:
    """Whether Ray gives all bundles within these seconds. Ray waits for whole seconds alone, and for 0 says no."""
    return bool(group.wait(math.floor(within_s))) or placement_group_table(group)["state"] == "CREATED"


@contextmanager
def attached(address: str) -> Iterator[None]:
    """Context attached to a running cluster, without a plan."""
    cluster = RayCluster(Plan(()), deadline_s=CONNECT_S, address=address)
    try:
        cluster._connect()
        yield
    finally:
        cluster.stop()
