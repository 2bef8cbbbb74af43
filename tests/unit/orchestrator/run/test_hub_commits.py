"""The commits of hub models that a run notes, from the hub's cache on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from orchestrator.config.loading import load_config
from orchestrator.run.hub_commits import hub_commits

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"
COMMIT, OTHER = "0" * 39 + "a", "0" * 39 + "b"


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two commits of `me/mine`, of which `main` is the second."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for commit in (COMMIT, OTHER):
        folder = tmp_path / "models--me--mine/snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "models--me--mine/refs").mkdir()
    (tmp_path / "models--me--mine/refs/main").write_text(OTHER)


def test_every_model_of_the_hub_is_noted_with_its_commit(tmp_path: Path) -> None:
    members = "{one: {type: model, model: {path: me/mine, revision: main}}}"
    settings = [
        *("actor.model.path=me/mine", f"actor.model.revision={COMMIT}", f"reference.model.path={tmp_path}"),
        *("critic.model.path=me/unknown", f"reward={{type: ensemble, members: {members}}}"),
    ]
    found = hub_commits(load_config(TINY, settings))
    assert found == {"actor.model": f"me/mine@{COMMIT}", "reward.members.one.model": f"me/mine@{OTHER}"}


@pytest.mark.parametrize("revision, commit", [(None, OTHER), (COMMIT, COMMIT)])
@pytest.mark.parametrize("where", ["here", "hub"])
def test_the_base_of_an_adapter_is_noted_with_its_commit(
    where: str, revision: str | None, commit: str, tmp_path: Path
) -> None:
    """Without a `revision` in adapter_config.json it is what was newest, so only run.json can tell which."""
    hub = tmp_path / "models--me--adapter"
    adapter = tmp_path / "adapter" if where == "here" else hub / "snapshots" / COMMIT
    adapter.mkdir(parents=True)
    said = {"base_model_name_or_path": "me/mine", "peft_type": "LORA", "revision": revision}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    (adapter / "adapter_model.safetensors").touch()
    if where == "hub":
        (hub / "refs").mkdir()
        (hub / "refs/main").write_text(COMMIT)
    path = str(adapter) if where == "here" else "me/adapter"
    found = hub_commits(load_config(TINY, [f"actor.model.path={path}", f"reference.model.path={tmp_path}"]))
    own = {} if where == "here" else {"actor.model": f"me/adapter@{COMMIT}"}
    assert found == {**own, "actor.model (base)": f"me/mine@{commit}"}
