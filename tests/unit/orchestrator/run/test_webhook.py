"""Alerts over HTTP: a real server on this machine, which takes, refuses, or keeps its client waiting."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.alerts import WebhookConfig
from orchestrator.config.loading import dump_config, load_config
from orchestrator.config.secrets import check_overrides
from orchestrator.errors import ConfigError
from orchestrator.report.alert_lines import Alert
from orchestrator.run.webhook import Webhook
from tests.unit.orchestrator.stages.test_run import TINY

ALERT = Alert(7, "kl", "warn", "objective/kl 12.1, above 10", "The policy is far.")
SECRET = "T0KEN-1234"


class Server(ThreadingHTTPServer):
    """Keeps what it was sent."""

    daemon_threads = True
    status = 200
    pause_s = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[tuple[str, Any, str | None]] = []

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append((self.path, body, self.headers["authorization"]))
        time.sleep(self.server.pause_s)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *said: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def webhook(url: str, tell: Callable[[str], None], **more: Any) -> Webhook:
    return Webhook(WebhookConfig.model_validate({"secret_url": url, **more}), "tiny", tell)


@pytest.mark.parametrize("status", [200, 204])
def test_an_alert_is_posted_as_json(status: int, server: Server) -> None:
    server.status, told = status, list[str]()
    hook = webhook(server.url(), told.append, headers={"authorization": "Bearer abc"}, timeout_s=60.0)
    hook.send(ALERT)
    hook.close()
    body = {"run": "tiny", "step": 7, "rule": "kl", "action": "warn", "text": str(ALERT)}
    assert server.bodies == [(f"/hooks/{SECRET}", body, "Bearer abc")] and told == []


@pytest.mark.parametrize(("status", "url"), [(500, ""), (0, "http://127.0.0.1:9/hooks/T0KEN-1234")])
def test_a_failure_is_told_once_without_the_address(status: int, url: str, server: Server) -> None:
    server.status, told = status, list[str]()
    hook = webhook(url or server.url(), told.append, timeout_s=60.0)
    for _ in range(3):
        hook.send(ALERT)
    hook.close()
    why = "HTTP 500" if status else "no answer within 60 s, or no connection"
    assert told == [f"an alert could not be sent to alerts.webhook.secret_url ({why}); more failures are not told"]


def test_nobody_waits_for_a_slow_server_longer_than_its_deadline(server: Server) -> None:
    server.pause_s, told = 200.0, list[str]()
    hook, began = webhook(server.url(), told.append, timeout_s=0.2), time.monotonic()
    hook.send(ALERT)
    hook.close()
    assert time.monotonic() - began < 100.0 and len(told) <= 1


def test_the_address_is_in_no_record_and_no_error() -> None:
    config = load_config(TINY, [f"alerts.webhook.secret_url=https://hooks.example.org/{SECRET}"])
    assert SECRET not in dump_config(config) and SECRET not in repr(config)
    for wrong in (f"hooks.example.org/{SECRET}", f"https://[{SECRET}", f"https:///{SECRET}"):
        with pytest.raises(ConfigError) as error:
            load_config(TINY, [f"alerts.webhook.secret_url={wrong}"])
        assert SECRET not in str(error.value) and "alerts.webhook.secret_url" in str(error.value)


def test_a_run_goes_on_from_a_configuration_that_hides_the_address(tmp_path: Path) -> None:
    """As checkpoints hold it."""
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_config(load_config(TINY, [f"alerts.webhook.secret_url=https://hooks.example.org/{SECRET}"])))
    assert load_config(kept).alerts is not None


def test_the_address_is_refused_on_a_command_line_and_those_of_services_are_not() -> None:
    with pytest.raises(ConfigError, match=r"alerts\.webhook\.secret_url holds a secret") as error:
        check_overrides([f"alerts.webhook.secret_url=https://hooks.example.org/{SECRET}"])
    assert SECRET not in str(error.value)
    check_overrides(["labelling.judge.url=http://127.0.0.1:8001/v1/chat/completions"])
