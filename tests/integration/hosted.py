"""Objects that live in processes of their own, for tests of the engines without Ray.

`Host` starts a process, builds an object there and calls its methods; `HostClient` reaches several hosts from any
process, as `cluster`'s client does. The object is built and called in its process' main thread.
"""

from __future__ import annotations

import os
import queue
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from tests.integration.forks import forking

DEADLINE_S = 240.0


def _serve(address: str, log: Path, env: Mapping[str, str], factory: Callable[..., Any], args: Sequence[Any]) -> None:
    os.environ.update(env)
    os.setsid()  # a group of its own, with which vLLM's workers end too
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    jobs: queue.Queue[tuple[Connection, str, Sequence[Any]]] = queue.Queue()
    listener = Listener(address, family="AF_UNIX")

    def read(connection: Connection) -> None:
        while True:
            try:
                jobs.put((connection, *connection.recv()))
            except EOFError:
                return

    def accept() -> None:
        while True:
            threading.Thread(target=read, args=(listener.accept(),), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    target = factory(*args)
    while True:
        connection, name, arguments = jobs.get()
        if name == "__stop__":
            os._exit(0)
        try:
            answer = getattr(target, name)(*arguments)
            connection.send((True, list(answer) if isinstance(answer, Iterator) else answer))
        except Exception as error:
            traceback.print_exc()
            connection.send((False, error))


class HostClient:
    """Calls a method of the objects at several addresses at once. Picklable."""

    deadline_s = DEADLINE_S

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)

    def call(self, method_name: str, *args: Any) -> list[Any]:
        """Raises the first object's exception, if one raised."""
        connections = []
        for address in self.addresses:
            connections.append(Client(address, family="AF_UNIX"))
            connections[-1].send((method_name, args))
        answers = []
        for connection in connections:
            assert connection.poll(DEADLINE_S), f"{method_name} did not answer within {DEADLINE_S} s"
            done, answer = connection.recv()
            if not done:
                raise answer
            answers.append(answer)
        return answers


class Host:
    """One process with one object."""

    def __init__(self, log: Path, env: Mapping[str, str], factory: Callable[..., Any], *args: Any) -> None:
        self.log = log
        self.address = tempfile.mktemp(prefix="host-")
        self.process = forking().Process(target=_serve, args=(self.address, log, {**os.environ, **env}, factory, args))
        self.process.start()
        while not os.path.exists(self.address):
            self.process.join(0.05)
            assert self.process.is_alive(), log.read_text()[-3000:]

    def call(self, method_name: str, *args: Any) -> Any:
        assert self.process.is_alive(), self.log.read_text()[-3000:]
        try:
            return HostClient([self.address]).call(method_name, *args)[0]
        except (EOFError, FileNotFoundError) as error:
            raise RuntimeError(self.log.read_text()[-3000:]) from error

    def stop(self) -> None:
        with suppress(OSError):  # a host that is ending by itself
            if self.process.is_alive():
                Client(self.address, family="AF_UNIX").send(("__stop__", ()))
                self.process.join(5)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        Path(self.address).unlink(missing_ok=True)


@contextmanager
def hosts(
    directory: Path, factory: Callable[..., Any], arguments: Sequence[Sequence[Any]], env: Mapping[str, str]
) -> Iterator[list[Host]]:
    """One host for each of `arguments`, side by side; `RANK` and the like are in `env` with `{rank}` to fill in."""
    started: list[Host] = []
    try:
        for rank, args in enumerate(arguments):
            own = {key: value.format(rank=rank) for key, value in env.items()}
            log = directory / f"{getattr(factory, '__name__', 'host')}-{rank}.log"
            started.append(Host(log, own, factory, *args))
        yield started
    finally:
        for host in started:
            host.stop()
