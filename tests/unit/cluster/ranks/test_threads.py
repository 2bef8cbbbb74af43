"""A rank that was forked after torch was imported has as many threads as its slot says."""

from __future__ import annotations

import pytest
import torch

from cluster.ranks.worker import as_many_threads_as_told


def test_torch_has_as_many_threads_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (3, 1):
            monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
            as_many_threads_as_told()
            assert torch.get_num_threads() == threads
        monkeypatch.delenv("OMP_NUM_THREADS")
        as_many_threads_as_told()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
