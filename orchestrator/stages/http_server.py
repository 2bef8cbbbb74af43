"""An application at an address: it answers in a thread of its own, while the driver's main thread works."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn
from fastapi import FastAPI

from orchestrator.config.serving import ServingConfig
from orchestrator.errors import ConfigError, TetrarchError

GOODBYE_S = 5
"""Seconds for connections to end once everything has been answered."""
BACKLOG = 1024
"""Connections that may wait to be taken."""


@contextmanager
def listening(serving: ServingConfig, said_by: str = "serving.port") -> Iterator[socket.socket]:
    """Context with a socket at the configured address. ConfigError if it is taken, or not of this machine. `said_by`:
    the key or option that says the port."""
    host, port = serving.host, serving.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
            found.listen(BACKLOG)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            fix = f"stop what listens there, or set {said_by} to another one (0: any free one)"
            raise ConfigError(
                f"{said_by}={port}: the port is in use at {host}; {fix}"
                if taken
                else f"serving.host={host}, serving.port={port}: {error.strerror or error}; change them"
            ) from None
        yield found


def url_of(found: socket.socket) -> str:
    """Where a browser reaches it."""
    host, port = found.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def answering(app: FastAPI, found: socket.socket) -> Iterator[None]:
    """Context in which `app` answers at the socket; at its end what is under way is finished, if it ends soon."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GOODBYE_S)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[found])), name="http", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise TetrarchError("the HTTP server ended while it started; its error stands above")
        thread.join(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(GOODBYE_S + 5)
