from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.stages.run
import orchestrator.stages.state_writer
from cluster.config import Deadlines
from cluster.ranks.usage import Usage
from cluster.runtime.orders import Orders
from orchestrator.config.alerts import AlertsConfig
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.checkpoint import CheckpointConfig
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.report import ReportConfig
from orchestrator.groups.scoring import Policy
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.state import TrainState
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.stages.ppo import Ppo
from orchestrator.stages.run import Run
from tests.unit.orchestrator.fakes import FakeGroup, write_waits
from tests.unit.orchestrator.stages.ppo_runs import NOBODY, MakeRun, Source, watch


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    log: list[str] = []
    for module in (orchestrator.stages.run, orchestrator.stages.state_writer):
        monkeypatch.setattr(module, "wait_all", write_waits(log))
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: log.append("idle?") is None)

    def make(**state: int) -> tuple[Run, list[str]]:
        groups: Any = {role: FakeGroup(role, log) for role in ("actor", "critic", "reward", "reference")}
        cluster = SimpleNamespace(usage=lambda: Usage([], 1.0, []))
        policy = Policy(groups["reward"], Deadlines())
        roles: Any = SimpleNamespace(policy=policy, judge=None, cluster=cluster, deadlines=Deadlines(), **groups)
        rollout = SimpleNamespace(prompts_per_step=4, responses_per_prompt=1)
        settings: Any = {"rollout": rollout, "ppo": PpoConfig(), "deadlines": Deadlines(), "steps": 10}
        settings |= {"checkpoint": CheckpointConfig(), "evaluation": EvaluationConfig(), "alerts": AlertsConfig()}
        config: Any = SimpleNamespace(**settings, run_dir=str(tmp_path), folder_key="run_dir", profile=None)
        config.report, config.deciding_set = ReportConfig(), ""
        config.canary = CanaryConfig(enabled=False)
        config.actor_steps = lambda warm_at: 10 - warm_at
        report: Any = SimpleNamespace(status=log.append, note=log.append, phase=log.append, step=lambda *told: None)
        report.timeline = lambda part: None
        report.sync = report.check = report.complete = lambda: None
        report.leaves = lambda best, ended: None
        train_state = TrainState(Source(), FixedController(0.1), **state)  # type: ignore[arg-type]
        ppo = Ppo(config, roles, train_state, report, {}, NOBODY, NOBODY)
        watch(ppo)
        run = Run(config, ppo, Checkpoints(tmp_path, keep=2), report, orders=Orders())
        run.orders.grace_s = 30.0
        return run, log

    return make
