"""Workers are forked from a process that has imported, and are otherwise what Ray would have started."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.runtime import fork_request
from cluster.runtime.fork_server import ForkServer, Imports

WORKER = """
import json, os, resource, signal, sys, threading
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv, "folder": os.getcwd(), "colour": os.environ["COLOUR"],
    "imported": "colorsys" in sys.modules, "imported_as": os.environ.get("SHADE"), "name": __name__,
    "group": os.getpgrp(),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "signals": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
}), flush=True)
if "--wait" in sys.argv:
    threading.Event().wait()
sys.exit(7)
"""
ORDINARY = "import sys; print('as ever', *sys.argv[1:])"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """What stands for Ray's two scripts."""
    (tmp_path / "default_worker.py").write_text(WORKER)
    (tmp_path / "setup_worker.py").write_text(ORDINARY)
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    running = ForkServer(Imports(("colorsys",), {"SHADE": "dark"}))
    yield running
    running.stop()


def ask(scripts: Path, address: str, *words: str, context: str = "{}") -> tuple[int, str, int]:
    """As Ray starts a worker: exit code of the request, what it and its fork have written to the end, its pid."""
    words = [sys.executable, fork_request.__file__, str(scripts / "default_worker.py"), *words_of(context, *words)]
    with subprocess.Popen(
        words,
        cwd=scripts,
        env={**os.environ, fork_request.ADDRESS: address, "COLOUR": "red"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (333, 4096)),
        process_group=0,
    ) as process:
        out, _ = process.communicate(timeout=60)
    return process.returncode, out, process.pid


def words_of(context: str, *words: str) -> list[str]:
    return [*words, "--language=PYTHON", f"--serialized-runtime-env-context={context}"]


def test_a_fork_has_the_imports_and_all_else_from_the_request(scripts: Path, server: ForkServer) -> None:
    code, out, asked_by = ask(scripts, server.address, "--node=1")
    told: dict[str, Any] = json.loads(out)
    assert code == 0 and told.pop("pid") != told.pop("parent") == server.pid
    assert told == {
        "argv": [str(scripts / "default_worker.py"), "--node=1"],
        "folder": str(scripts),
        "colour": "red",
        "imported": True,
        "imported_as": None,
        "name": "__main__",
        "files": 333,
        "group": asked_by,
        "signals": True,
    }


@pytest.mark.parametrize("context", ['{"env_vars": {"A": "1"}}', '{"py_executable": "/usr/bin/python"}'])
def test_a_runtime_environment_is_rays_business(scripts: Path, server: ForkServer, context: str) -> None:
    code, out, _ = ask(scripts, server.address, context=context)
    assert code == 0 and out.startswith(f"as ever {scripts}/default_worker.py --language=PYTHON")


def test_a_request_that_breaks_off_does_no_harm(scripts: Path, server: ForkServer) -> None:
    for said in (b"", b"1", b"1{"):
        with socket.socket(socket.AF_UNIX) as broken:
            broken.connect(server.address)
            broken.sendall(said)
    assert ask(scripts, server.address)[0] == 0 and psutil.Process(server.pid).is_running()
    assert json.loads(ask(scripts, server.address)[1])["parent"] == server.pid


def test_without_a_server_workers_start_as_ever(scripts: Path) -> None:
    code, out, _ = ask(scripts, "/no/such/socket")
    assert code == 0 and out.startswith("as ever")


@pytest.mark.parametrize("imports", ["no_such_module", "tests.unit.cluster.runtime.with_a_thread"])
def test_a_server_that_cannot_import_or_has_threads_does_not_fork(scripts: Path, imports: str) -> None:
    server = ForkServer(Imports((imports,), {}))
    try:
        code, out, _ = ask(scripts, server.address)
    finally:
        server.stop()
    assert code == 0 and out.startswith("as ever")


def test_what_was_forked_ends_with_the_server(scripts: Path) -> None:
    server = ForkServer(Imports((), {}))
    (scripts / "told").touch()
    environment = {**os.environ, fork_request.ADDRESS: server.address, "COLOUR": "red"}
    words = [sys.executable, fork_request.__file__, str(scripts / "default_worker.py"), "--wait", "--language=PYTHON"]
    with (scripts / "told").open("w") as told:
        subprocess.run(words, cwd=scripts, env=environment, stdout=told, check=True)
    until = time.monotonic() + 30
    while not (text := (scripts / "told").read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    forked = psutil.Process(json.loads(text)["pid"])
    assert forked.is_running()
    server.stop()
    forked.wait(30)
