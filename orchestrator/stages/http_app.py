"""What every server of ours has: a bearer key, limits, errors as JSON, health and metrics.

A request that cannot be answered gets a status and `{"error": {"message": …, "type": …}}`, as OpenAI's clients read it.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteError
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery

OPEN = ("/", "/health", "/metrics", "/openapi.json", "/docs")
"""Paths that need no key."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Upper ends of the histogram of a request's time."""


RESTARTS = {
    "engine_restarts": "Engines that failed and were started again",
    "frozen_restarts": "Groups of the reward that failed and were started again",
}
"""Gauge, and metric of `healing/` → meaning."""


class ErrorTold(BaseModel):
    """Why a request is not answered."""

    message: str
    type: str
    """`invalid_request_error`, or `server_error`."""
    param: None
    code: int
    """The status."""


class ErrorBody(BaseModel):
    """The body of every answer with an error status, as OpenAI's clients read it."""

    error: ErrorTold


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is wrong, too large or without the key."},
    "5XX": {
        "model": ErrorBody,
        "description": "The server is too busy or shutting down, or its engines or its reward failed.",
    },
}
"""What every route may answer beside its own answer."""


class Json(JSONResponse):
    """JSON of ASCII characters: a request may hold halves of characters, which UTF-8 cannot write."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def make_app(
    title: str, serving: ServingConfig, gauges: Mapping[str, tuple[str, Callable[[], float]]], recovery: Recovery
) -> FastAPI:
    """An application with `/health` and `/metrics`. `gauges`: name → (meaning, value now)."""
    app = FastAPI(title=title, default_response_class=Json, docs_url="/docs", redoc_url=None, responses=REFUSALS)
    registry = CollectorRegistry()
    for name, (meaning, value) in gauges.items():
        Gauge(name, meaning, registry=registry).set_function(value)
    for name, meaning in RESTARTS.items():
        restarts = partial(recovery.totals.__getitem__, f"healing/{name}")
        Gauge(f"tetrarch_{name}", meaning, registry=registry).set_function(restarts)
    app.add_middleware(Guard, serving=serving, registry=registry)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteError, _refused)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "restarting" if recovery.waited_for else "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def error_json(status: int, message: str, headers: Mapping[str, str] | None = None) -> Json:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    own = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
    told = ErrorBody(error=ErrorTold(message=message, type=kind, param=None, code=status))
    return Json(told.model_dump(), status_code=status, headers={**own, **(headers or {})})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteError)
    return error_json(error.status_code, str(error.detail), error.headers)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = []
    for found in error.errors():
        place = ".".join(str(part) for part in found["loc"] if part != "body")
        problems.append(f"{place}: {found['msg']}" if place else str(found["msg"]))
    return error_json(400, "; ".join(problems[:5]))


class Guard:
    """Around the application: who may ask, how large a request may be, and how many there have been."""

    def __init__(self, app: ASGIApp, serving: ServingConfig, registry: CollectorRegistry) -> None:
        self._app = app
        self._key = serving.api_key.get_secret_value() if serving.api_key else None
        self._most = serving.max_body_kib * 1024
        labels = ["route", "status"]
        self._requests = Counter("tetrarch_requests", "Requests that have been answered", labels, registry=registry)
        self._seconds = Histogram(
            "tetrarch_request_seconds", "Seconds of a request", ["route"], registry=registry, buckets=SECONDS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, statuses = time.perf_counter(), [500]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            problem = self._problem(scope)
            await (problem or self._app)(scope, self._limited(receive), sent)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, str(statuses[-1])).inc()
            self._seconds.labels(route).observe(time.perf_counter() - began)

    def _problem(self, scope: Scope) -> Response | None:
        """Why the request is not looked at."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key is not None and scope["path"] not in OPEN:
            said = headers.get(b"authorization", b"")
            if not hmac.compare_digest(said, f"Bearer {self._key}".encode()):
                return error_json(401, "the header `Authorization: Bearer KEY` with the server's key is missing")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            return error_json(413, self._too_large)
        return None

    @property
    def _too_large(self) -> str:
        return f"the body is larger than serving.max_body_kib={self._most // 1024} allows"

    def _limited(self, receive: Receive) -> Receive:
        """The same, but an error once the body has become too large (it need not say its length)."""
        seen = [0]

        async def limited() -> Message:
            message = await receive()
            seen[0] += len(message.get("body", b""))
            if seen[0] > self._most:
                raise HTTPException(413, self._too_large)
            return message

        return limited
