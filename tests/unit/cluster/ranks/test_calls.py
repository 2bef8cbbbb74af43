"""Calls to ranks, as far as they need no Ray."""

from __future__ import annotations

from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.watch import Rank


def test_a_call_without_some_ranks_is_that_of_the_others() -> None:
    ranks = [Rank(Identity("rollout", number, "node", "log"), None, None) for number in range(3)]
    call: Call[None] = Call("sleep", ranks, ["r0", "r1", "r2"], ["v0", "v1", "v2"])
    left = call.without([ranks[1].identity, Identity("actor", 0, "node", "log")])
    assert left == Call("sleep", [ranks[0], ranks[2]], ["r0", "r2"], ["v0", "v2"])
    assert call.without([]) == call
