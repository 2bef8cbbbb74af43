"""A KL penalty that becomes advantages of full size is allowed, and said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.commands.exit_codes import Outcome
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.rules.ppo_rules import penalty_warnings
from orchestrator.config.sft import SftRun
from orchestrator.ppo.advantages import dr_grpo, grpo
from orchestrator.ppo.experience import shape_rewards
from tests.unit.orchestrator.config.files import MINIMAL

GRPO = ["ppo.advantage={type: grpo}", "rollout.responses_per_prompt=4"]
IN_LOSS = "ppo.kl={where: loss, estimator: k3}"


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (GRPO, True),
        ([*GRPO, "ppo.kl.controller={type: adaptive, target: 6}"], True),
        ([*GRPO, "ppo.kl.controller.coefficient=0"], False),
        ([*GRPO, IN_LOSS], False),
        (["ppo.advantage={type: dr_grpo}", "rollout.responses_per_prompt=4"], False),
        ([], False),
    ],
)
def test_a_penalty_that_is_divided_by_its_own_spread_is_said(
    file: Path, overrides: list[str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(file, overrides)
    assert len(list(penalty_warnings(config))) == warned
    Outcome().loaded(config, None)
    assert ("warning: ppo.advantage.type=grpo" in capsys.readouterr().err) == warned


def test_a_training_without_such_advantages_has_nothing_to_say(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(
        MINIMAL.partition("reward:")[0] + "sft: {model: {path: policy}, output: out, data: {path: rows.jsonl}}\n"
    )
    assert not list(penalty_warnings(load_root(SftRun, path)))


def test_equal_scores_leave_the_penalty_alone_and_only_a_division_makes_it_large() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    penalty = torch.tensor([[1e-4, 0.0], [0.0, 0.0], [0.0, 1e-4], [0.0, 2e-4]])
    groups = torch.zeros(4, dtype=torch.int64)
    rewards = shape_rewards(torch.ones(4), penalty, mask)
    assert dr_grpo(rewards, mask, groups).abs().max() < 2e-4
    assert grpo(rewards, mask, groups).abs().max() > 1.0
    assert grpo(shape_rewards(torch.ones(4), torch.zeros_like(penalty), mask), mask, groups).abs().max() == 0
