"""A viewer of folders, without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.viewer_app import viewer_app


class Viewer:
    """A viewer of folders, asked as the page asks it."""

    def __init__(self, *folders: Path) -> None:
        self.client = TestClient(viewer_app(Shelf(folders)), base_url="http://127.0.0.1:8470")

    def ask(self, path: str, **asked: Any) -> Any:
        answer = self.client.get(f"/api/{path}", params=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, status: int, path: str, **asked: Any) -> str:
        answer = self.client.get(f"/api/{path}", params=asked)
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"]["message"])
