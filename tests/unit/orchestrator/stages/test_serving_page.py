"""The page of a served policy in a real browser (Chromium, where it is installed)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.serving_desk import Desk
from tests.unit.chromium import CHROMIUM, Browser, browser
from tests.unit.orchestrator.stages.served import EchoEngines, Letters, length, working

ASK = """(async () => {
  document.getElementById("prompt").value = %s;
  document.getElementById("n").value = "3";
  document.getElementById("key").value = %s;
  document.getElementById("form").requestSubmit();
  const until = Date.now() + 10000;
  const told = () => document.querySelector("#answers li") || document.getElementById("problem").textContent;
  while (!told() && Date.now() < until) await new Promise(again => setTimeout(again, 20));
  return JSON.stringify({
    answers: [...document.querySelectorAll("#answers li")].map(item => [item.className, item.innerText]),
    problem: document.getElementById("problem").textContent, bold: document.querySelectorAll("#answers b").length,
  });
})()"""


def ask(page: Browser, prompt: str, key: str = "") -> Any:
    """The answers that the page shows."""
    return json.loads(page.evaluate(ASK % (json.dumps(prompt), json.dumps(key))))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_ranks_the_answers_and_tells_what_is_wrong(tmp_path: Path) -> None:
    serving, letters = ServingConfig(port=0, api_key="secret"), Letters()
    reader = PromptReader(letters, 60, 40)  # type: ignore[arg-type]
    with (
        working(Desk(EchoEngines(), length, letters.decode, most=3)) as desk,
        listening(serving) as found,
        answering(policy_app(desk, reader, serving, Recovery(), temperature=1.0, top_p=1.0), found),
        browser(tmp_path) as page,
    ):
        page.open(url_of(found), "document.getElementById('form')")
        assert "Authorization" in ask(page, "a")["problem"]
        told = ask(page, "<b>a", key="secret")
        assert told["problem"] == "" and told["bold"] == 0  # text stays text
        assert [shown.split() for _, shown in told["answers"]] == [
            ["12.000", "<b>a<b>a<b>a"],
            ["8.000", "<b>a<b>a"],
            ["4.000", "<b>a"],
        ]
        assert [name for name, _ in told["answers"]] == ["best", "", ""]
