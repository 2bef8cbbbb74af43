"""Real processes with a real process group, that run functions of the tests: `Ranks(2).call(function, *arguments)`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.integration.forks import forking

DEADLINE_S = 200.0


class Ranks:
    """`size` processes that stay alive between calls, so that the engines are imported once."""

    def __init__(self, size: int) -> None:
        from torch.distributed import TCPStore

        self.size = size
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = forking()
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "OMP_NUM_THREADS": "1",
            }
            process = context.Process(target=_serve, args=(environment, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` on every rank at once; the answers by rank."""
        for end in self._ends:
            end.send((function, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(DEADLINE_S):
                raise TimeoutError(f"rank {rank} did not answer {function.__name__} within {DEADLINE_S} s")
            answers.append(end.recv())
        for rank, (failure, _) in enumerate(answers):  # all have been heard: the next call must not hear them
            if failure is not None:
                raise RuntimeError(f"rank {rank} failed in {function.__name__}:\n{failure}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(environment: dict[str, str], end: Connection) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")
    while True:
        try:
            function, arguments = end.recv()
        except EOFError:
            return
        try:
            answer = (None, function(*arguments))
        except Exception:
            answer = (traceback.format_exc(), None)
        end.send(answer)
