"""A PPO run between its steps: groups are fakes, checkpoints are real. See `make_run` in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from orchestrator.run.way_back import WayBack
from orchestrator.stages.alarm import Alarm
from orchestrator.stages.ppo import Ppo
from orchestrator.stages.run import Run
from orchestrator.stages.stage import StepReport
from tests.unit.orchestrator.fakes import prompts_of

NOBODY: Any = None
"""What a fake reference answers for its fingerprint."""


MakeRun = Callable[..., tuple[Run, list[str]]]


def ppo_of(run: Run) -> Ppo:
    assert isinstance(run.stage, Ppo)
    return run.stage


class Source:
    """Prompts with a cursor."""

    def __len__(self) -> int:
        return 1

    drawn = 0

    def next(self, prompts: int, responses_per_prompt: int) -> Any:
        self.drawn += 1
        return prompts_of(prompts)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def watch(ppo: Ppo) -> None:
    """Let the alerts be those of the configuration as it is now; the log has what they tell."""
    ppo.alarm = Alarm(ppo.config, WayBack(ppo.config), [lambda alert: ppo.report.note(str(alert))])


def sleep(run: Run, sleeps: bool) -> None:
    """Whether the engines share their GPUs."""
    ppo = ppo_of(run)
    changed: Any = {**vars(ppo.roles), "policy": replace(ppo.roles.policy, sleeps=sleeps)}
    ppo.roles = SimpleNamespace(**changed)  # type: ignore[assignment]


def kl_of(kl: float, tokens: float = 50.0) -> StepReport:
    """A step with that KL, in nats per response of so many tokens, in which the actor was trained."""
    told = {"objective/kl": kl, "objective/kl_per_token": kl / tokens, "response/length_mean": tokens}
    return StepReport({**told, "lr/actor": 1e-5})
