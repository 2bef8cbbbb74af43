"""The page of a served policy in a real browser (Chromium, where it is installed)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from orchestrator.config.serving import ServingConfig
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.serving_desk import Desk
from tests.unit.orchestrator.stages.served import EchoEngines, Letters, length, working

CHROMIUM = shutil.which("chromium")
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


class Browser:
    """A page in Chromium."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    def call(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": arguments}))
        while True:
            told = json.loads(self._socket.recv(timeout=20))
            if told.get("id") == self._number:
                return told["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        until = time.monotonic() + 20
        ready = "document.readyState === 'complete' && !!document.getElementById('form')"
        while not self.evaluate(ready):
            assert time.monotonic() < until
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def ask(self, prompt: str, key: str = "") -> Any:
        return json.loads(self.evaluate(ASK % (json.dumps(prompt), json.dumps(key))))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        file, until = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (file.exists() and file.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        pages = httpx.get(f"http://127.0.0.1:{file.read_text().splitlines()[0]}/json", trust_env=False).json()
        page = next(page for page in pages if page["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], proxy=None) as socket:
            yield Browser(socket)
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_ranks_the_answers_and_tells_what_is_wrong(tmp_path: Path) -> None:
    serving, letters = ServingConfig(port=0, api_key="secret"), Letters()
    reader = PromptReader(letters, 60, 40)  # type: ignore[arg-type]
    with (
        working(Desk(EchoEngines(), length, letters.decode, most=3)) as desk,
        listening(serving) as found,
        answering(policy_app(desk, reader, serving, 1.0), found),
        browser(tmp_path) as page,
    ):
        page.open(url_of(found))
        assert "Authorization" in page.ask("a")["problem"]
        told = page.ask("<b>a", key="secret")
        assert told["problem"] == "" and told["bold"] == 0  # text stays text
        assert [shown.split() for _, shown in told["answers"]] == [
            ["12.000", "<b>a<b>a<b>a"],
            ["8.000", "<b>a<b>a"],
            ["4.000", "<b>a"],
        ]
        assert [name for name, _ in told["answers"]] == ["best", "", ""]
