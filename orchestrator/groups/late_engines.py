"""Engines that hang. To ask one what it does and to end it takes seconds, in which the others go on: rounds flow in,
their results flow out as soon as they are known."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.watch import Rank
from orchestrator.groups.engine_fleet import EngineFleet
from roles.serving_engine import NewTokens, ServingEngine


@dataclass(frozen=True, slots=True)
class Round:
    """A running round of an engine."""

    rank: Rank
    since: float
    call: Call[list[NewTokens]]


class LateEngines:
    """Those that have not ended a round in time. Each is ended in a thread of its own, unless no other one could go on
    meanwhile."""

    def __init__(self, engines: RoleGroup[ServingEngine], fleet: EngineFleet) -> None:
        self._engines, self._fleet = engines, fleet
        self._ending: dict[int, Future[ClusterError | None]] = {}

    def result(self, number: int, own: Round, stall_s: float) -> list[NewTokens] | None:
        """What the round of an engine has generated; None while that is open. ClusterError if it has failed, or has not
        ended within `stall_s`; then the engine has been ended, or is no more to be waited for."""
        ending = self._ending.get(number)
        if ending is None:
            late = time.monotonic() - own.since >= stall_s
            if not own.call.over and not late:
                return None
            if not own.call.over and len(self._ending) + 1 < len(self._engines):
                self._ending[number] = self._begun(number, own, stall_s)
                self._fleet.ending.add(number)
                return None
        else:
            if not ending.done():
                return None
            del self._ending[number]
            self._fleet.ending.discard(number)
            error = ending.result()
            if error is not None:
                raise error
        (found,) = own.call.result(stall_s, since=own.since)
        return found

    def _begun(self, number: int, own: Round, stall_s: float) -> Future[ClusterError | None]:
        """Why the round has failed, once the engine is ended; None if the round has ended after all."""
        found: Future[ClusterError | None] = Future()

        def end() -> None:
            try:
                own.call.result(stall_s, since=own.since)
            except ClusterError as error:
                self._engines.end([number])
                found.set_result(error)
            else:
                found.set_result(None)

        def run() -> None:
            try:
                end()
            except BaseException as error:  # raised in the driver's thread
                found.set_exception(error)

        threading.Thread(target=run, name=f"ending {own.rank.identity.name}", daemon=True).start()
        return found
