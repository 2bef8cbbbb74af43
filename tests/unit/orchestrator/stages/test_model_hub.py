"""`--push-to-hub` against a hub of this process: private by default, and the token is in no message."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.stages.model_hub import hub_of, push

TOKEN = "hf_secret0123456789"


class FakeHub:
    """The hub's client."""

    private: dict[str, bool]
    uploads: list[tuple[str, Path, str]]
    error: Exception | None = None

    def __init__(self, token: str) -> None:
        assert token == TOKEN

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        self.private.setdefault(f"me/{name}", private)
        return SimpleNamespace(repo_id=f"me/{name}")

    def model_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.private[name])

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        if self.error:
            raise self.error
        self.uploads.append((repo_id, folder_path, commit_message))
        return f"https://hub/{repo_id}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.private, FakeHub.uploads, FakeHub.error = {}, [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return FakeHub


def test_a_new_repository_is_private(hub: type[FakeHub], tmp_path: Path) -> None:
    assert push(tmp_path, "mine", "the actor of step 4", public=False) == "https://hub/me/mine"
    assert hub.private == {"me/mine": True}
    assert hub.uploads == [("me/mine", tmp_path, "the actor of step 4")]


def test_nothing_goes_to_a_public_one_unless_that_is_said(hub: type[FakeHub], tmp_path: Path) -> None:
    hub.private["me/known"] = False
    with pytest.raises(TetrarchError, match="me/known on the hub is public; say --public"):
        push(tmp_path, "known", "m", public=False)
    assert hub.uploads == []
    push(tmp_path, "known", "m", public=True)
    push(tmp_path, "new", "m", public=True)
    assert len(hub.uploads) == 2 and hub.private["me/new"] is False


def test_the_token_is_in_no_message(hub: type[FakeHub], tmp_path: Path) -> None:
    hub.error = OSError(f"401 for Bearer {TOKEN}")
    with pytest.raises(TetrarchError) as caught:
        push(tmp_path, "mine", "m", public=False)
    assert "the hub did not take it as mine: OSError: 401 for Bearer …" in str(caught.value)
    assert caught.value.__suppress_context__, "the traceback does not show the hub's error either"


def test_what_cannot_work_is_said_before_anything_is_written(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--push-to-hub=a/b/c: "):
        hub_of("a/b/c")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="needs a token"):
        hub_of("mine")
