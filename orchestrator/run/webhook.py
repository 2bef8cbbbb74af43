"""Alerts to an address of the user's: an alert flows in; JSON is posted by a thread of its own.

The address and the headers are secrets: they are in no message.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable

import httpx

from orchestrator.config.alerts import WebhookConfig
from orchestrator.report.alert_lines import Alert
from roles.http_service import HttpService, ServiceFailed


class Webhook:
    """Posts the alerts of the run `name`; leaving the context waits for those under way.

    Args:
        tell: shows the user a line: the first failure. The others are not told.
    """

    def __init__(self, config: WebhookConfig, name: str, tell: Callable[[str], None]) -> None:
        self._service = HttpService([config.secret_url.get_secret_value()], config.headers, config.timeout_s)
        self._name, self._tell, self._timeout_s = name, tell, config.timeout_s
        self._threads: list[threading.Thread] = []
        self._failed = threading.Lock()

    def send(self, alert: Alert) -> None:
        """Post an alert; returns at once."""
        said = {"run": self._name, "step": alert.step, "rule": alert.rule, "action": alert.action, "text": str(alert)}
        thread = threading.Thread(target=self._deliver, args=(json.dumps(said).encode(),), name="webhook", daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for the alerts under way, until their deadline."""
        until = time.monotonic() + self._timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _deliver(self, body: bytes) -> None:
        try:
            asyncio.run(self._post(body))
        except Exception as error:  # whatever it is, it ends nothing
            status = error.status if isinstance(error, ServiceFailed) else None
            if status is not None and httpx.codes.is_success(status):
                return
            why = (
                f"HTTP {status}" if status is not None else f"no answer within {self._timeout_s:g} s, or no connection"
            )
            if self._failed.acquire(blocking=False):
                self._tell(
                    f"an alert could not be sent to alerts.webhook.secret_url ({why}); more failures are not told"
                )

    async def _post(self, body: bytes) -> None:
        async with self._service.opened() as client:
            await self._service.post(client, body, lambda response: None)
