"""Faults in what a run does when a rank fails."""

from __future__ import annotations

from tests.mutants.fault import Fault

ALARM = "tests/unit/orchestrator/stages/test_alarm.py"
FLEET = "tests/unit/orchestrator/groups/test_engine_fleet.py"

SERVED = "tests/unit/orchestrator/groups/test_served_policy.py"
SUSPECTS = "tests/unit/orchestrator/groups/test_suspects.py"
JUDGES = "tests/unit/orchestrator/groups/test_judge_engines.py"
HANGS = "tests/unit/cluster/ranks/test_hangs.py"

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
    Fault(
        "a rank that only waits in a collective is called late",
        "cluster/ranks/hangs.py",
        "if own.begun and not own.collective]",
        "if own.begun]",
        HANGS,
    ),
    Fault(
        "of ranks in a collective the one that is ahead is called late",
        "cluster/ranks/hangs.py",
        "== min(counts.values())",
        "== max(counts.values())",
        HANGS,
    ),
    Fault(
        "other weights under the same path are taken",
        "orchestrator/run/resuming.py",
        " or changed_models(found, config)",
        "",
        "tests/unit/orchestrator/checks/test_going_on.py",
    ),
    Fault(
        "a change of a model's file is noticed by its size and time alone",
        "orchestrator/run/model_contents.py",
        "facts.st_ctime_ns, facts.st_ino]",
        "0, 0]",
        "tests/unit/orchestrator/run/test_model_contents.py",
    ),
    Fault(
        "when an engine dies while it falls asleep, the others are not waited for",
        "orchestrator/groups/policy.py",
        "                asleep = asleep.without(error.blamed)\n",
        "                return\n",
        "tests/unit/orchestrator/groups/test_policy.py",
    ),
    Fault(
        "what ranks said before a long update ends a checkpoint after it",
        "orchestrator/stages/state_writer.py",
        "if saving.asked > saving.until:",
        "if time.monotonic() > saving.until:",
        "tests/unit/orchestrator/stages/test_state_writer.py",
    ),
    Fault(
        "the weights that made a bad batch count as good",
        "orchestrator/run/alert_watch.py",
        "*begun]) - 2, 0)",
        "*begun]) - 1, 0)",
        ALARM,
    ),
    Fault(
        "a run that went back goes on with the whole learning rate",
        "orchestrator/stages/alarm.py",
        "if ratio < 1.0:",
        "if ratio < 0.0:",
        ALARM,
    ),
    Fault(
        "a run that is resumed forgets how often it went back",
        "orchestrator/run/way_back.py",
        "if self.last is None and written:",
        "if self.last is None and not written:",
        ALARM,
    ),
    Fault(
        "a rule that warns is told at every step",
        "orchestrator/run/alert_watch.py",
        'if one[0].action != "warn" or one[0].name not in self.told',
        "if True",
        ALARM,
    ),
    Fault(
        "a response of an engine that failed begins anew",
        "orchestrator/groups/serving_roles.py",
        "token_ids = [*self.wanted.token_ids, *self.given]",
        "token_ids = [*self.wanted.token_ids]",
        SERVED,
    ),
    Fault(
        "a serving engine is started again with the weights of the beginning",
        "orchestrator/groups/serving_roles.py",
        "replace(setup[0], model_path=folder)",
        "setup[0]",
        SERVED,
    ),
    Fault(
        "questions that a judge's engine answered before it failed are asked again",
        "orchestrator/groups/judge_engines.py",
        "list(left.values())[place :: len(usable)]",
        "questions[place :: len(usable)]",
        JUDGES,
    ),
    Fault(
        "a prompt with which engines die is tried for ever",
        "orchestrator/groups/serving_roles.py",
        "for one in wanted if one.name not in refused}",
        "for one in wanted}",
        SUSPECTS,
    ),
    Fault(
        "all responses of a dead engine begin again at once",
        "orchestrator/groups/serving_roles.py",
        "return [one]  # at once: there may be hundreds",
        "free.append(one)",
        SUSPECTS,
    ),
    Fault(
        "sound engines go on with a prompt that was given up",
        "orchestrator/groups/serving_roles.py",
        "self._drop(name)  # other engines may generate responses to that prompt",
        "del self._under_way[name]",
        SUSPECTS,
    ),
    Fault(
        "what hangs an engine is not suspected when its client has left",
        "orchestrator/groups/serving_roles.py",
        "had = [*self._dropped, *self._under_way.values()]",
        "had = list(self._under_way.values())",
        SUSPECTS,
    ),
    Fault(
        "prompts are refused that an engine only happened to die with",
        "orchestrator/groups/suspects.py",
        "alone = next(self._numbers), len(prompts) == 1",
        "alone = next(self._numbers), bool(prompts)",
        SUSPECTS,
    ),
    Fault(
        "failures that a prompt has caused are counted against the server",
        "orchestrator/groups/suspects.py",
        "self.recovery.forgive(BUDGET)",
        "pass",
        SUSPECTS,
    ),
    Fault(
        "failures of a prompt end the server before it is known to be the reason",
        "orchestrator/groups/recovery.py",
        "if len(recent) >= allowed + undecided:",
        "if len(recent) >= allowed:",
        SUSPECTS,
    ),
    Fault(
        "prompts excuse any number of failures",
        "orchestrator/groups/serving_roles.py",
        "return min(self.suspects.undecided, len(self.engines) + 1)",
        "return self.suspects.undecided",
        SUSPECTS,
    ),
    Fault(
        "a rank that has lost its card goes on",
        "cluster/ranks/failures.py",
        "if _lost_device(error):",
        "if False:",
        "tests/unit/cluster/ranks/test_failures.py",
    ),
)
