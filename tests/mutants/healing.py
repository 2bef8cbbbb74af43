"""Faults in what a run does when a rank fails."""

from __future__ import annotations

from tests.mutants.fault import Fault

FLEET = "tests/unit/orchestrator/groups/test_engine_fleet.py"

HEALING = (
    Fault(
        "a restarted engine samples from the weights of the folder",
        "orchestrator/groups/engine_fleet.py",
        "return {*self._down, *(self._fresh if version else ())}",
        "return set(self._down)",
        FLEET,
    ),
    Fault(
        "prompts of an engine that failed are lost",
        "orchestrator/groups/policy.py",
        "found.append((given.share, sorted(given.left)))",
        "found.append((given.share, sorted(given.left)[1:]))",
        FLEET,
    ),
    Fault(
        "prompts that an engine answered before it failed are answered twice",
        "orchestrator/groups/policy.py",
        "found.append((given.share, sorted(given.left)))",
        "found.append((given.share, list(given.rows)))",
        FLEET,
    ),
    Fault(
        "a part of the rollouts is divided over engines",
        "orchestrator/groups/assignments.py",
        "lambda row: row // unit if unit else 0",
        "lambda row: row",
        FLEET,
    ),
    Fault(
        "failures of engines are never counted",
        "orchestrator/groups/recovery.py",
        "recent.append(now)",
        "pass",
        FLEET,
    ),
    Fault(
        "an engine that got a part of a push goes on",
        "orchestrator/groups/engine_fleet.py",
        "self.fence(error, also=numbers)",
        "self.fence(error)",
        FLEET,
    ),
    Fault(
        "the actor's rank 0 leaves its peers when a push breaks off",
        "roles/transfer/push.py",
        "self._control.complete_gathering()",
        "pass",
        "tests/unit/roles/transfer/test_push.py",
    ),
    Fault(
        "an engine joins a push to some engines at the place that it has among all",
        "roles/rollout.py",
        "place = engines.index(self._setup.index)",
        "place = self._setup.index",
        "tests/unit/roles/test_rollout.py",
    ),
    Fault(
        "calls of a frozen group that was started again are not repeated",
        "orchestrator/groups/spread.py",
        "if own.group.role in revived:",
        "if False:",
        "tests/unit/orchestrator/groups/test_frozen_ranks.py",
    ),
    Fault(
        "samples of an engine with wrong weights are trained on",
        "orchestrator/groups/canary.py",
        "place.get(row, row)",
        "row",
        FLEET,
    ),
    Fault(
        "a run that starts again begins anew",
        "orchestrator/stages/run_again.py",
        'resume, why = "newest", _why_again',
        "resume, why = None, _why_again",
        "tests/unit/orchestrator/stages/test_run_again.py",
    ),
)
