"""Ranks that begin with their libraries imported: one process imports them, and Ray's workers are forked from it.

Names of modules flow in. Importing torch and transformers costs a rank six seconds of CPU, and a machine that has fewer
cores than ranks waits for all of them; a fork costs none, and shares the memory of what was imported. This works where
the driver starts Ray itself. Ray's own script for starting a worker stays in place for every case in which a fork could
do harm: see `is_safe`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ranks.host_memory import kill_tree
from cluster.runtime import fork_request

WAITING = 1024
"""Number of requests that may wait while the modules are imported."""
ALONE = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Environment during the imports: one thread, and a check for GPUs that does not open them."""
DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl."""


@dataclass(frozen=True, slots=True)
class Imports:
    """The modules that ranks need."""

    modules: tuple[str, ...]
    environment: Mapping[str, str]
    """Environment variables during the imports."""


class ForkServer:
    """A process on the driver's node that imports the ranks' modules and is forked; it ends with the driver."""

    def __init__(self, imports: Imports) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tetrarch-", dir="/tmp")  # paths of sockets must be short
        self.address = f"{self._folder.name}/fork"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(WAITING)
            here = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve"
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", f"{here}; serve({listener.fileno()}, {imports.modules})"],
                env={**os.environ, **imports.environment, **ALONE},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """Process id of the server, the parent of the forks."""
        return self._process.pid

    @contextmanager
    def used_by_ray(self) -> Iterator[None]:
        """Context: a Ray that is started inside asks this server for its workers."""
        from ray._private import ray_constants

        before = ray_constants.SETUP_WORKER_FILENAME
        os.environ[fork_request.ADDRESS] = self.address
        ray_constants.SETUP_WORKER_FILENAME = str(Path(fork_request.__file__))
        try:
            yield
        finally:
            ray_constants.SETUP_WORKER_FILENAME = before
            del os.environ[fork_request.ADDRESS]

    def stop(self) -> None:
        """End the server, and with it the processes forked from it."""
        kill_tree(self._process.pid)
        self._process.wait()
        self._folder.cleanup()


def serve(listener: int, modules: Sequence[str]) -> None:
    """Import the modules, then fork for every request. Runs until the driver ends."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)  # forks notice themselves that Ray has ended
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in Ray's own processes
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.disable()  # until a rank has built its role; see `cluster.ranks.worker`
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    with socket.socket(fileno=listener) as requests:
        while True:
            connection, _ = requests.accept()
            with connection, suppress(OSError, ValueError):  # the process has ended, or the system has no resources
                _answer(connection, requests)


def _answer(connection: socket.socket, requests: socket.socket) -> None:
    """Fork for one request and confirm it; send nothing if forking is not safe."""
    _, descriptors, *_ = socket.recv_fds(connection, 1, 2)
    try:
        with connection.makefile("rb") as file:
            request = json.load(file)
        if is_safe():
            forked = os.fork()
            if forked == 0:
                requests.close()
                _become(request, descriptors)
            with suppress(OSError):  # Ray ends the children of a killed worker by their process group
                os.setpgid(forked, request["group"])
            connection.sendall(fork_request.DONE)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def is_safe() -> bool:
    """Whether this process can be forked: one thread, no CUDA (neither survives a fork), and no Ray, which would
    have read environment variables that only a worker has."""
    alone = len(os.listdir("/proc/self/task")) == 1 and "ray" not in sys.modules
    return alone and "libcuda.so" not in Path("/proc/self/maps").read_text()


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Continue as the requesting process would have."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor, number in zip(descriptors, (1, 2), strict=True):
            os.dup2(descriptor, number)
        resource.setrlimit(resource.RLIMIT_NOFILE, request["files"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["command"]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)
