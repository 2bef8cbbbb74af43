"""A role without a model, for tests of the groups."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.ranks.role_group import Client

local = threading.local()


class Stub:
    def __init__(self, name: str, start_s: float = 0.0) -> None:
        self.name = name
        time.sleep(start_s)
        local.name = name
        print(f"{name} is built")

    @classmethod
    def loading(cls, name: str) -> Stub:
        """Rank 1 has a bar of progress in its log, and waits until there is a file `loaded` beside it."""
        if name.endswith("1"):
            print("Loading checkpoint shards:  33%|###   | 3/9 [00:04<00:08,  1.4s/it]", end="", flush=True)
            loaded, until = Path(os.readlink("/proc/self/fd/1")).with_name("loaded"), time.monotonic() + 60
            while not loaded.exists() and time.monotonic() < until:
                time.sleep(0.05)
        return cls(name)

    def add(self, shard: int, more: int = 0) -> int:
        return shard + more

    def facts(self) -> dict[str, Any]:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT", "COLOUR")
        facts: dict[str, Any] = {key: os.environ[key] for key in keys if key in os.environ}
        return facts | {"pid": os.getpid(), "thread_local": local.name, "thread": threading.get_ident()}

    def make(self, mebibytes: int) -> bytes:
        return bytes(mebibytes * 2**20)

    def size(self, data: bytes) -> int:
        return len(data)

    def speak(self) -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        subprocess.run(["echo", "from a child"], check=True)
        os.write(1, b"from a descriptor\n")

    def fail(self, shard: bool) -> str:
        if shard:
            raise ValueError(f"{self.name} cannot")
        time.sleep(300)
        return "woke up"

    def lose_card(self, shard: bool) -> None:
        """As torch does once a kernel has failed: each later call would fail, too."""
        if shard:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert'")

    def die(self, shard: bool) -> None:
        if shard:
            print("about to die")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)

    def hang(self, shard: bool) -> None:
        if shard:
            nap()

    def hold_lock(self) -> None:
        """Stop the whole process, so that not even its control threads answer."""
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(5.0)  # another thread may stop first, and this one must not answer meanwhile

    def count(self, shard: int, pause_s: float = 0.0) -> Iterator[int]:
        for number in range(shard):
            time.sleep(pause_s)
            yield number

    def count_on(self, shard: int, folder: str) -> Iterator[int]:
        """As `count`, but from 1 on only once there is a file of that name in a folder."""
        for number in range(shard):
            while number and not Path(folder, str(number)).exists():
                time.sleep(0.01)
            yield number

    def count_then_fail(self, shard: int) -> Iterator[int]:
        yield from range(shard)
        raise ValueError("no more numbers")

    def start_child(self) -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    def keep(self, mebibytes: int) -> None:
        self.kept = b"x" * (mebibytes * 2**20)

    def seen_gpus(self) -> str:
        """The cards that an engine would use."""
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def connect(self, client: Client) -> None:
        self.client = client

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        return self.client.call(method, *arguments)


class Collective(Stub):
    """Ranks that meet in a real process group."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        import torch.distributed

        torch.distributed.init_process_group("gloo")

    def total(self, shard: int) -> int:
        import torch

        value = torch.tensor(shard)
        torch.distributed.all_reduce(value)
        return int(value)

    def die_in_collective(self, shard: bool) -> None:
        import torch

        if shard:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.all_reduce(torch.zeros(1))


class Hanging(Collective):
    """Ranks of which one comes late to a collective."""

    def __init__(self, fifo: str) -> None:
        super().__init__(fifo)
        import torch.distributed

        self.apart = [torch.distributed.new_group([0, 1]) for _ in range(2)]

    def update(self, how: str) -> float:
        """Meet the other ranks, after something that never ends."""
        import torch.distributed

        group = self.apart[int(how[-1])] if how.startswith("astray") else None
        if how in WAYS:
            WAYS[how](self.name)
        value = torch.ones(1)
        torch.distributed.all_reduce(value, group=group)
        return float(value)


def nap(fifo: str = "") -> None:
    time.sleep(300)


def loop(fifo: str) -> None:
    while True:
        pass


def hold(fifo: str) -> None:
    """Python's lock is held all the time."""
    re.match("(a+)+$", "a" * 80 + "b")


def write(fifo: str) -> None:
    """Nobody reads what is written, as on a disk that does not answer."""
    with open(fifo, "w") as file:
        file.write("state")


WAYS = {"nap": nap, "loop": loop, "lock": hold, "write": write}
