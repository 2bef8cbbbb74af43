"""The environment that a rank gets."""

from __future__ import annotations

import os

import pytest

from cluster.ranks import worker
from cluster.ranks.identity import Identity


@pytest.mark.parametrize(
    ("address", "said", "interface"),
    [("127.0.0.1", None, "lo"), ("127.0.0.1", "eth7", "eth7"), ("10.0.0.3", None, None), ("10.0.0.3", "eth7", "eth7")],
)
def test_on_one_machine_nccl_begins_on_loopback(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str | None, interface: str | None
) -> None:
    """The interface on which NCCL listens follows from this variable; a user's own word counts."""
    monkeypatch.setattr(os, "environ", {} if said is None else {"NCCL_SOCKET_IFNAME": said})
    monkeypatch.setattr(worker.ray.util, "get_node_ip_address", lambda: address)
    for name in ("_redirect_output", "as_many_threads_as_told", "MemorySampler"):
        monkeypatch.setattr(worker, name, lambda *arguments: None)
    monkeypatch.setattr(worker.gc, "disable", lambda: None)
    worker.Worker(Identity("actor", 0, "here", "log", 0), {"RANK": "0"})
    assert os.environ.get("NCCL_SOCKET_IFNAME") == interface and os.environ["RANK"] == "0"
