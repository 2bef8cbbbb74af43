"""Who is late when a wait has run out. Ranks that are waited for flow in; the late ones, and lines for the user, flow
out.

Each rank says what it does, and its node's system says how its process is. A rank that is in a collective of its group
waits for its peers: late are those that are not, or that have begun fewer collectives than the others.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from cluster.ranks.identity import Identity
from cluster.ranks.process_state import TOLD_FRAMES, ProcessState, examined, innermost
from cluster.ranks.status import Status
from cluster.ranks.watch import STARTED, Rank
from cluster.ranks.worker import on_node

T = TypeVar("T")
STATUS_S = 3.0
"""Seconds after which a rank that does not say what it is doing is reported as silent."""
EXAMINED_S = 15.0
"""Seconds in which a node must say how the processes of its ranks are."""
HANG_FILE_S = 5.0
"""Seconds in which the file with all stacks must be written: the disk may be what hangs."""
BORN_S = 1.0
"""Seconds in which the process ids of ranks that have started must be known here."""
PARTS = 10
"""Parts of the seconds in which ranks must say something."""
COLLECTIVE = re.compile(r"(distributed|comm)/\w+\.py:\d+ (?P<name>\w+)|zero/partition\w*\.py:\d+ (?P<wait>\w*wait\w*)")
"""A frame of torch.distributed or DeepSpeed in which a rank waits for its peers, or is about to."""
NOT_IN = "; it is not in {}: arguments are missing that another rank makes, or its answer could not be handed over"
NO_ANSWER = "its node does not say how its process is: Ray's raylet there hangs, or the network"
UNBORN = "its process has not been heard of yet: Ray still starts it, or does not get so far on a busy node"
SILENT = f"does not say within {STATUS_S:g} s what it is doing"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a rank, such as `Seen(identity, "update", None, ProcessState(4711, "stopped"))`."""

    who: Identity
    method: str
    """The method that is waited for; empty if none is."""
    status: Status | None
    """None if the rank does not answer."""
    process: ProcessState | None
    """None if its node does not answer, or was not asked."""
    raylet: ProcessState | None = None
    """Of Ray's process on its node, on the node of this process alone."""
    born: bool = True
    """Whether its process has said its number, which it does as soon as it has started."""

    @property
    def frames(self) -> list[str]:
        """Of its method, outermost first."""
        return (self.status.stack if self.status else []) or (self.process.method_frames if self.process else [])

    @property
    def collective(self) -> str:
        """The collective of its group in which it waits for its peers; empty if it does not."""
        found = [COLLECTIVE.match(frame) for frame in self.frames[-TOLD_FRAMES:]] if self.status else []
        return next((match["name"] or match["wait"] for match in reversed(found) if match), "")

    @property
    def in_flight(self) -> str:
        """The collective with its number, which is the same on every rank that has come as far; empty without one."""
        number = self.status.collectives if self.status else None
        return self.collective if number is None else self.collective and f"{self.collective}, number {number}"

    @property
    def begun(self) -> bool:
        """Whether it works on something, as far as anyone knows."""
        return self.status is None or self.status.busy

    def __str__(self) -> str:
        return f"{self.who} {self._does}; its log is {self.who.log}"

    @property
    def _does(self) -> str:
        process = f"its process {self.process}" if self.process else NO_ANSWER if self.born else UNBORN
        if self.raylet is not None and (self.raylet.stopped or self.raylet.ended):
            process = f"Ray's raylet on its node {self.raylet} (pid {self.raylet.pid})"
        if self.status is not None:
            more = f"; in a collective ({self.in_flight})" if self.in_flight else ""
            return f"{self.status}{more if self.status.busy else NOT_IN.format(self.method)}; {process}"
        if self.process is None:
            return f"{SILENT}, and {process}"
        at = f", at {innermost(self.frames)}" if self.frames else ""
        return f"{SILENT}: {process} (pid {self.process.pid}){at}"


def late_among(peers: Sequence[Seen]) -> list[Seen]:
    """Of the ranks of one role those for whom the others wait."""
    late = [own for own in peers if own.begun and not own.collective]
    late = late or [own for own in peers if not own.begun]
    counts = {own.who: own.status.collectives for own in peers if own.status and own.status.collectives is not None}
    if late or len(counts) < len(peers):
        return late or list(peers)
    return [own for own in peers if counts[own.who] == min(counts.values())]


def lines_of(peers: Sequence[Seen]) -> list[str]:
    """What is said of the ranks of one role: first of the late ones, then of those that only wait for them."""
    late = late_among(peers)
    names = ", ".join(f"rank {own.who.rank}" for own in late)
    told = [*map(str, late)]
    told += [
        f"{own.who} waits for {names} in a collective ({own.in_flight}): it {own.status}"
        if own.collective
        else f"{own.who} {own.status}"
        for own in peers
        if own not in late
    ]
    if len(late) == len(peers) > 1 and all(own.collective for own in late):
        told.append(f"{names} wait for each other in the same collective: look at the network between their nodes")
    return told


def report(asked: Mapping[Rank, str]) -> tuple[list[Identity], str]:
    """Those who are late of the ranks that are waited for (rank → method), and what every rank is doing, as text. If
    that cannot be found out, all of them."""
    try:
        return _report(asked)
    except Exception as error:  # it must not take the place of the deadline that has passed
        names = [rank.identity for rank in asked]
        told = ", ".join(map(str, names))
        return names, f"{told}: what they are doing cannot be said: {type(error).__name__}: {error}"


def _report(asked: Mapping[Rank, str]) -> tuple[list[Identity], str]:
    others = [rank for rank in STARTED.ranks if rank not in asked]
    seen = _seen({**asked, **dict.fromkeys(others, "")})
    roles: dict[str, list[Seen]] = {}
    for own in seen:
        if own.method:
            roles.setdefault(own.who.role, []).append(own)
    lines = [line for peers in roles.values() for line in lines_of(peers)]
    busy = [own for own in seen if not own.method and own.begun]
    lines += [f"meanwhile {own.who} {own.status}" if own.status else f"meanwhile {own}" for own in busy]
    late = [own.who for peers in roles.values() for own in late_among(peers)]
    return late, "\n".join([*lines, _written(seen)])


def _seen(ranks: Mapping[Rank, str]) -> list[Seen]:
    """What is known of each rank. The processes of those that answer, and are not waited for, are left alone."""
    answers = {rank.worker.status.remote(): rank for rank in ranks}
    states: dict[Rank, Status] = {answers[reference]: state for reference, state in answered(answers, STATUS_S).items()}
    looked_at = [rank for rank, method in ranks.items() if method or rank not in states]
    born = answered([rank.pid for rank in looked_at], BORN_S)
    processes = _processes({rank: born[rank.pid] for rank in looked_at if rank.pid in born})
    here = ray.get_runtime_context().get_node_id()
    raylets = {status.raylet for rank, status in states.items() if rank.node_id == here and status.raylet}
    raylet = next(iter(examined(sorted(raylets))), None) if raylets else None
    return [
        Seen(
            *(rank.identity, method, states.get(rank), processes.get(rank)),
            raylet=raylet if rank.node_id == here else None,
            born=rank in states or rank.pid in born,
        )
        for rank, method in ranks.items()
    ]


def _processes(pids: Mapping[Rank, int]) -> dict[Rank, ProcessState]:
    """How the processes of ranks are, as their nodes say; those of this node without Ray, which may be what hangs."""
    here = ray.get_runtime_context().get_node_id()
    nodes: dict[str, dict[int, Rank]] = {}
    for rank, pid in pids.items():
        nodes.setdefault(rank.node_id, {})[pid] = rank
    asked = {on_node(examined, node).remote(list(own)): node for node, own in nodes.items() if node != here}
    found = {nodes[here][state.pid]: state for state in examined(list(nodes.get(here, {})))}
    for reference, states in answered(asked, EXAMINED_S).items():
        found |= {nodes[asked[reference]][state.pid]: state for state in states}
    return found


def answered(references: Iterable[Any], within_s: float) -> dict[Any, Any]:
    """Reference → its value, for those that have one within `within_s` seconds. The dead answer at once."""
    waited = list(references)
    silent, found = set(silent_of(waited, within_s)), dict[Any, Any]()
    for reference in waited:
        if reference in silent:
            continue
        with suppress(RayError):
            found[reference] = ray.get(reference)
    return found


def silent_of(references: Sequence[Any], within_s: float) -> list[Any]:
    """Those of some references that have no value within `within_s` seconds. It waits for a part of them at a time, so
    that a machine that stands still for a while, ranks and all, uses up one part of the seconds."""
    silent = list(references)
    for _ in range(PARTS):
        if silent:
            _, silent = ray.wait(silent, num_returns=len(silent), timeout=within_s / PARTS)
    return silent


def _written(seen: Sequence[Seen]) -> str:
    """Write all that is known of ranks to a file beside the logs; where it is, or why there is none."""
    file = Path(seen[0].who.log).parent / f"hang-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    text = "\n\n".join("\n".join([str(own), *own.frames, *_stacks(own)]) for own in seen)

    def write() -> str:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")
        return f"all stacks are in {file}"

    try:
        return within(HANG_FILE_S, write)
    except TimeoutError:  # one of OSError's kinds
        return f"{file} could not be written within {HANG_FILE_S:g} s: look at the disk"
    except OSError as error:
        return f"{file} could not be written: {error.strerror}"


def _stacks(own: Seen) -> list[str]:
    return [own.process.stacks] if own.process and own.process.stacks else []


def within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns or raises. TimeoutError if that takes longer: it then goes on in a thread of its own."""
    found: Future[T] = Future()

    def call() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return found.result(seconds)
