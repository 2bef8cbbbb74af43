from __future__ import annotations

from roles.seeds import stable_seed


def test_stable_seeds_never_change() -> None:
    assert stable_seed(1, 0, 0) == 817144282088761752
    assert len({stable_seed(1, 2), stable_seed(12), stable_seed("1", "2"), stable_seed(1, "2"), stable_seed(2, 1)}) == 5
