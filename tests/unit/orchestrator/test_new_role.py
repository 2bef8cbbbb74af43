"""What a frozen role costs: its class, its section, its row in the table of roles, the field on the batch.

A second reference is added here; it is configured, placed, planned, started, asked in a step, and told from the others.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

import cluster.role_table
import orchestrator.groups.scoring
from cluster.config import LocalPlacement
from cluster.placement.plan import plan
from cluster.role_table import Role
from orchestrator.checks.role_models import role_models
from orchestrator.config.loading import load_config
from orchestrator.config.role_needs import ppo_roles, role_needs
from orchestrator.config.rules.rule_table import broken_rules
from orchestrator.config.run import RunConfig
from orchestrator.errors import NotFinite
from orchestrator.groups.build import Builder
from orchestrator.groups.resolved_models import Models
from orchestrator.planning.layout_drawing import draw
from orchestrator.planning.layout_planner import layout
from orchestrator.run.resume_rules import RESUME_RULES
from orchestrator.run.resuming import why_not
from roles.batch import Rollouts, Scored
from roles.config.models import FrozenRole
from tests.unit.orchestrator import fakes
from tests.unit.orchestrator.ppo import test_train_step as steps

ROOT = Path(__file__).resolve().parents[3]
GROUPS, THEIRS = (
    load_config(ROOT / "configs" / name).model_dump(by_alias=True)
    for name in ("llama3-8b-2x8.yaml", "llama3-70b-32xa800.yaml")
)
"""Plain values of placements in both forms."""


class Anchor:
    """The class."""

    def __init__(self, setup: Any, temperature: float, early_end: Any) -> None:
        self.built_from = (setup, temperature, early_end)

    def anchor_logprobs(self, rollouts: Rollouts) -> Tensor:
        """float32 `[batch, time]`."""
        raise NotImplementedError("fakes answer in its place")


class WithAnchor(RunConfig):
    """The section; None: this run has no such role."""

    anchor: FrozenRole | None = None


ROW = Role("anchor", phases=("score",), fills="anchor_logprobs", made_by=f"{__name__}.Anchor", colour="red")


@dataclass(frozen=True, slots=True)
class AnchorScored(Scored):
    """The field on the batch."""

    anchor_logprobs: Tensor


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.role_table.ROLES, "anchor", ROW)
    monkeypatch.setattr(orchestrator.groups.scoring, "Scored", AnchorScored)


def configured(**changes: Any) -> WithAnchor:
    """On groups of GPUs, the second reference where the first one is."""
    data = deepcopy(GROUPS)
    home = next(group for group in data["placement"]["groups"].values() if "reference" in group["roles"])
    home["roles"] = (*home["roles"], "anchor")
    return WithAnchor.model_validate({**data, "anchor": {"micro_batch_tokens": 2048}, **changes})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return steps.no_waiting(monkeypatch)


def test_it_scores_in_a_step_beside_the_others(log: list[str]) -> None:
    result, _, groups = steps.step(log, frozen=["anchor"])
    assert log.count("start anchor.anchor_logprobs") == 2  # for the parts of both engines
    assert log.index("start anchor.anchor_logprobs") < log.index("[score]")
    waited = next(line for line in log if line.startswith("wait for") and "logprobs" in line)
    assert waited.count("anchor.anchor_logprobs") == 2
    assert isinstance(result.own.scored, AnchorScored) and result.own.scored.anchor_logprobs.shape == (
        steps.ROWS,
        fakes.TIME,
    )
    assert len(groups["actor"].seen[-1]) == 2, "the actor was not trained"


def test_its_answers_stay_its_own_and_in_order(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(rollouts: Any) -> Tensor:
        """Each row's own number on its generated tokens."""
        return (rollouts.token_ids[:, :1].float() * rollouts.response_mask)[rollouts.response_mask]

    spread = orchestrator.groups.scoring.spread

    def of_anchor(group: Any, method: Any, batch: Any, shared: Any) -> Any:
        with monkeypatch.context() as patch:
            if group.role == "anchor":
                patch.setattr(fakes, "per_token", numbered)
            return spread(group, method, batch, shared)

    monkeypatch.setattr(orchestrator.groups.scoring, "spread", of_anchor)
    scored: Any = steps.step(log, frozen=["anchor"])[0].own.scored
    assert scored.anchor_logprobs[:, -1].tolist() == list(range(steps.ROWS))
    assert not scored.reference_logprobs.any() and not scored.old_logprobs.any()


def test_a_run_without_it_has_zeros(log: list[str]) -> None:
    result, _, _ = steps.step(log)
    assert not [line for line in log if "anchor" in line]
    assert isinstance(result.own.scored, AnchorScored) and not result.own.scored.anchor_logprobs.any()


def test_numbers_that_are_not_finite_are_told_by_its_name(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result, _, _ = steps.step(log)
    whole = {f.name: getattr(result.own.scored, f.name) for f in fields(AnchorScored)}
    whole["anchor_logprobs"] = torch.full_like(whole["anchor_logprobs"], torch.nan)
    monkeypatch.setattr(AnchorScored, "concatenate", classmethod(lambda cls, parts: AnchorScored(**whole)))
    with pytest.raises(NotFinite, match=r"the anchor's anchor_logprobs are not finite.*it was not trained") as caught:
        steps.step(log, frozen=["anchor"])
    assert caught.value.role == "anchor"


def test_it_is_placed_and_planned_with_the_others() -> None:
    config = configured()
    assert broken_rules(config) == []
    assert config.model_roles == ("rollout", "actor", "critic", "reference", "anchor", "reward")
    assert config.other_frozen_roles == ("anchor",) and config.model_of("anchor") == config.actor.model
    planned = layout(config)
    assert planned.plan.of("anchor") and planned.sizes["anchor"] == planned.sizes["actor"]
    scored = {role for load in planned.gpus for role, item in load.phases["score"] if item == "activations"}
    assert scored == {"actor", "critic", "reference", "anchor", "reward"}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw(planned))
    assert "anchor" in console.export_text()


def test_without_the_section_there_is_no_such_role() -> None:
    config = configured(anchor=None)
    assert "anchor" not in config.model_roles
    assert broken_rules(config) == ["anchor=null needs no GPUs; take `anchor` out of placement.groups"]


def test_a_placement_that_forgets_it_is_told() -> None:
    data = deepcopy(GROUPS)
    config = WithAnchor.model_validate({**data, "anchor": {}})
    assert ["the role 'anchor'" in line for line in broken_rules(config)] == [True]
    openrlhf = WithAnchor.model_validate({**THEIRS, "anchor": {}})
    assert broken_rules(openrlhf) == ["placement.type=openrlhf, but the section anchor needs GPUs; use type: groups"]


def test_on_one_machine_it_has_a_rank() -> None:
    config = configured(placement=LocalPlacement(), device="cpu")
    made = plan(config.placement, role_needs(config, ppo_roles(config)))
    assert [(slot.rank, slot.cpus) for slot in made.of("anchor")] == [(0, 1)]


def test_its_model_is_checked_before_anything_starts(tmp_path: Path) -> None:
    config = configured(anchor={"model": {"path": str(tmp_path / "none")}})
    assert role_models(config)["anchor.model"] == config.model_of("anchor")


def test_its_class_is_started_with_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    config, started = configured(), []
    cluster_: Any = SimpleNamespace(places=lambda role: [SimpleNamespace(slot=SimpleNamespace(share=0.5))])
    build: Any = Builder(config, cluster_)
    monkeypatch.setattr(Builder, "_early_end", lambda self, models: "early")
    monkeypatch.setattr(Builder, "start", lambda self, *given, **how: started.append((*given, how["replaceable"])))
    folders = {"actor": Path("a"), "anchor": Path("b")}
    build.frozen("anchor", Models(Path("a"), folders, SimpleNamespace()), ranks_of="anchor")  # type: ignore[arg-type]
    ((role, factory, (setup, temperature, early), replaceable),) = started
    assert replaceable, "a frozen rank that fails is started again"
    assert (role, factory, temperature, early) == ("anchor", Anchor, config.rollout.temperature, "early")
    assert (setup.model_path, setup.micro_batch_tokens, setup.shares_card) == ("b", 2048, True)


def test_a_resumed_run_knows_which_of_its_keys_may_change() -> None:
    rules = RESUME_RULES[RunConfig]
    assert why_not("anchor.micro_batch_tokens", rules) is None and why_not("anchor.zero.stage", rules) is None
    assert why_not("anchor.model.path", rules) == why_not("anchor", rules) == "the KL is measured against it"


def test_a_role_without_a_row_is_refused() -> None:
    data = deepcopy(GROUPS)
    next(iter(data["placement"]["groups"].values()))["roles"] = ("anker",)
    names = "actor, critic, reward, reference, labeller, anchor"
    with pytest.raises(ValidationError, match=rf"one of {names}, or reward.NAME"):
        RunConfig.model_validate(data)


def test_the_table_and_the_code_agree() -> None:
    """What the rows say of classes, methods and fields is there."""
    filled = {f.name for kind in (Rollouts, AnchorScored) for f in fields(kind)}
    for role in cluster.role_table.ROLES.values():
        assert not role.fills or role.fills in filled
        if role.made_by and role.fills:
            assert callable(getattr(orchestrator.groups.scoring.class_of(role.name), role.scored_by))
