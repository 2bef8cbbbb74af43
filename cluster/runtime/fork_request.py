"""What Ray runs to start a worker where a fork server is up (`cluster.runtime.fork_server`): asks it for a fork.

Command line and environment of the worker flow to the server. If the server does not fork, or the worker's runtime
environment asks for something, Ray's own script takes over. Only the standard library is imported, since this process
is what starting a worker still costs.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys

ADDRESS = "TETRARCH_FORK_SERVER"
"""Environment variable with the address of the server's socket."""
DONE = b"1"
ENVIRONMENT_CONTEXT = "--serialized-runtime-env-context="


def main(words: list[str]) -> None:
    """Let the server fork the worker; if it does not, become the worker."""
    own = [word for word in words if not word.startswith((ENVIRONMENT_CONTEXT, "--language="))]
    asked: dict[str, object] = {}
    for word in words:
        if word.startswith(ENVIRONMENT_CONTEXT):
            asked = json.loads(word.removeprefix(ENVIRONMENT_CONTEXT))
    plain = not {key for key, value in asked.items() if value and (key, value) != ("py_executable", sys.executable)}
    if not (plain and "--language=PYTHON" in words and forked(own)):
        script = os.path.join(os.path.dirname(own[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *words])


def forked(command: list[str]) -> bool:
    """Whether the server has forked a process that runs `command`."""
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgrp(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(os.environ[ADDRESS])
            socket.send_fds(server, [DONE], [1, 2])
            server.sendall(json.dumps(request).encode())
            server.shutdown(socket.SHUT_WR)
            return server.recv(1) == DONE
    except OSError:  # the server has ended
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
