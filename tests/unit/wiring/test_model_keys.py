"""Keys that say which models a run has: each role gets its own, cut and converted as its own section says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import orchestrator.groups.build
import orchestrator.groups.resolved_models
import orchestrator.stages.reward_training
from cluster.ranks.role_group import RoleGroup
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.data.preference_pairs import Pairs
from orchestrator.errors import TetrarchError
from orchestrator.groups.judge_engines import judge_engines
from orchestrator.groups.resolved_models import resolve_models
from orchestrator.groups.stage_roles import training_roles
from orchestrator.stages.reward_training import train_reward
from roles.batch import Preferences
from roles.config.models import ModelConfig
from tests.unit.wiring.base import base
from tests.unit.wiring.stage import stage, with_changes
from tests.unit.wiring.test_reward_training_keys import reward_base

PROVES = tuple(f"*.model.{key}" for key in ("path", "gguf_file", "layers", "trust_remote_code", "revision"))


def models_of(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Role → the model that its rank 0 would load: what was resolved, and whether its code may run."""
    asked: dict[str, tuple[Any, ...]] = {}

    def resolve(model: ModelConfig, cache: Path) -> Path:
        assert cache == folder / "models"
        where = folder / f"resolved-{len(asked)}"
        asked[str(where)] = (Path(model.path).name, model.gguf_file, model.layers, model.revision)
        return where

    with stage() as seen:
        monkeypatch.setattr(orchestrator.groups.resolved_models, "resolve_model", resolve)
        monkeypatch.setattr(
            orchestrator.groups.resolved_models, "load_tokenizer", lambda path, trust_remote_code: Words
        )
        monkeypatch.setattr(orchestrator.groups.build, "wait_all", lambda calls, deadline_s, meanwhile=None: None)
        monkeypatch.setattr("tests.unit.wiring.stage.Cluster.check_places", lambda cluster, groups: None)
        config = load_config(written(folder, with_changes(base(folder), changes)))
        with training_roles(config, resolve_models(config, config.model_roles)):
            setups = {role: group.arguments[0][0] for role, group in seen.groups.items()}
        found = {
            role: (*asked[setup.model_path][:3], setup.trust_remote_code, asked[setup.model_path][3])
            for role, setup in setups.items()
        }
        for group in seen.groups.values():
            group.arguments.clear()
    return found


@pytest.mark.parametrize("role", ["actor", "critic", "reference", "reward"])
def test_a_model_that_is_replaced_while_roles_start_from_it_is_told(
    role: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = base(folder)
    model = Path(shutil.copytree(said[role]["model"]["path"], tmp_path / role))
    config = load_config(written(tmp_path, with_changes(said, {f"{role}.model.path": str(model)})))
    with stage():
        monkeypatch.setattr("tests.unit.wiring.stage.Cluster.check_places", lambda cluster, groups: None)
        replacing = [lambda: None, lambda: (model / "config.json").write_text("{}")]
        monkeypatch.setattr(orchestrator.groups.build, "wait_all", lambda *said: replacing[0]())
        with training_roles(config, resolve_models(config, config.model_roles)):
            replacing.reverse()
        with (
            pytest.raises(TetrarchError, match=rf"^{model} has changed since .* was started from it \(config.json\)"),
            training_roles(config, resolve_models(config, config.model_roles)),
        ):
            raise AssertionError("roles of two models are up")


def written(folder: Path, data: dict[str, Any]) -> Path:
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


class Words:
    pad_token_id = 0
    eos_token_id = 2


def named(path: str, gguf: str | None, layers: int | None, trusted: bool, revision: str | None) -> dict[str, Any]:
    return {"path": path, "gguf_file": gguf, "layers": layers, "trust_remote_code": trusted, "revision": revision}


SAID = {
    "actor": ("a", "a.gguf", None, False, "r1"),
    "critic": ("b", None, 2, True, None),
    "reference": ("c", "c.gguf", 3, False, None),
    "reward": ("d", None, 4, True, "r2"),
}
TURNED = {
    "actor": ("e", None, 5, True, None),
    "critic": ("f", "f.gguf", None, False, "r3"),
    "reference": ("g", None, None, True, "r4"),
    "reward": ("h", "h.gguf", 6, False, None),
}


@pytest.mark.parametrize("said", [SAID, TURNED])
def test_each_role_has_the_model_of_its_own_section(
    said: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {f"{role}.model": named(*model) for role, model in said.items()}
    expected = {**said, "rollout": said["actor"]}
    assert models_of(folder, changes, monkeypatch) == expected


def test_a_role_without_a_model_has_anothers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {f"{role}.model": named(*SAID[role]) for role in ("actor", "reward")}
    changes |= {"critic.model": None, "reference.model": None, "critic.initialise_from": "reward"}
    found = models_of(folder, changes, monkeypatch)
    assert found["reference"] == SAID["actor"] and found["critic"] == SAID["reward"]
    found = models_of(folder, {**changes, "critic.initialise_from": "policy"}, monkeypatch)
    assert found["critic"] == SAID["actor"]


def test_each_member_of_an_ensemble_has_its_own_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first, second in ((SAID["reward"], TURNED["reward"]), (TURNED["critic"], SAID["critic"])):
        members = {
            name: {"type": "model", "model": named(*model), "zero": {"stage": 0}}
            for name, model in (("one", first), ("two", second))
        }
        found = models_of(folder, {"reward": {"type": "ensemble", "members": members}}, monkeypatch)
        assert (found["reward.one"], found["reward.two"]) == (first, second)


@pytest.mark.parametrize("model", [SAID["reference"], TURNED["reference"]])
def test_a_judge_has_its_own_model(model: tuple[Any, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ModelConfig] = []
    judge = {"type": "model", "model": named(*model), "max_tokens": 99}
    said = {**base(folder), "labelling": {"output": "o", "data": {"path": "d"}, "judge": judge}}
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump(said))
    engines = load_root(LabellingRun, file).engines
    assert engines is not None
    with stage() as seen, monkeypatch.context() as patched:
        patched.setattr(
            orchestrator.groups.resolved_models,
            "resolve_model",
            lambda own, cache: asked.append(own) or folder / "made",
        )
        patched.setattr(orchestrator.groups.resolved_models, "load_tokenizer", lambda path, trust_remote_code: Words)
        patched.setattr(orchestrator.groups.build, "wait_all", lambda calls, deadline_s, meanwhile=None: None)
        patched.setattr("tests.unit.wiring.stage.Cluster.check_places", lambda cluster, groups: None)
        with judge_engines(engines, resolve_models(engines, ())):
            setup = seen.groups["rollout"].arguments[0][0]
        seen.groups.clear()
    assert [(own.path, own.gguf_file, own.layers, own.revision) for own in asked] == [(*model[:3], model[4])]
    assert (Path(setup.model_path).name, setup.trust_remote_code, setup.max_model_tokens) == ("made", model[3], 99)


@pytest.mark.parametrize("model", [SAID["reward"], TURNED["reward"]])
def test_the_reward_model_in_the_making_has_its_own_backbone(
    model: tuple[Any, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelConfig] = []

    class Stop(Exception): ...

    def start(role: str, factory: Any, arguments: list[Any], places: Any, **options: Any) -> None:
        assert (role, arguments[0][0].model_path, arguments[0][0].trust_remote_code) == ("reward", "made", model[3])
        raise Stop

    with stage():
        monkeypatch.setattr(
            orchestrator.stages.reward_training, "resolve_model", lambda own, cache: asked.append(own) or Path("made")
        )
        monkeypatch.setattr(RoleGroup, "start", start)
        still = {"reward_training.optimizer.schedule.warmup_steps": 0}  # there is one step
        said = with_changes(reward_base(folder), {"reward_training.model": named(*model), **still})
        file = folder / "models.yaml"
        file.write_text(yaml.safe_dump(said))
        config = load_root(RewardTrainingRun, file)
        pairs = Preferences(
            torch.full((8, 3), 5),
            torch.full((8,), 3),
            torch.arange(8) // 2,
            torch.tensor([1.0, 0.0]).repeat(4),
            torch.ones(8),
        )
        with pytest.raises(Stop):
            train_reward(config, None, Pairs(pairs, "a row"))
    assert [(own.path, own.gguf_file, own.layers) for own in asked] == [model[:3]]
