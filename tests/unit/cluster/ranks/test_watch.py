"""Whose death ends a wait."""

from __future__ import annotations

import time

import pytest

from cluster.ranks.identity import Identity
from cluster.ranks.watch import Rank, Watch


def rank(role: str) -> Rank:
    return Rank(Identity(role, 0, "node", "log"), None, None)


def test_every_rank_is_watched_from_its_start_to_its_stop() -> None:
    watch, actor, critic, stranger = Watch(), rank("actor"), rank("critic"), rank("stranger")
    watch.add([actor, critic])
    assert watch.ranks == watch.watched == [actor, critic]
    watch.remove([actor, stranger])
    watch.remove([actor])
    assert watch.ranks == watch.watched == [critic]


def test_only_some_count_for_a_while() -> None:
    watch, actor, engine = Watch(), rank("actor"), rank("rollout")
    watch.add([engine, actor])
    with pytest.raises(OSError), watch.only([actor]):
        assert watch.watched == [actor]
        assert watch.ranks == [engine, actor], "the others are still to be stopped"
        raise OSError
    assert watch.watched == [engine, actor]


def test_many_ranks_are_chosen_quickly() -> None:
    """Every look of every wait does it: with each rank compared with each other this takes more than five seconds."""
    watch, ranks = Watch(), [rank("actor") for _ in range(40_000)]
    watch.add(ranks)
    began = time.process_time()
    with watch.only(ranks[::2]):
        assert len(watch.watched) == 20_000
    assert time.process_time() - began < 1.0


def test_a_rank_that_is_stopped_while_others_count_does_not_come_back() -> None:
    watch, actor, engine = Watch(), rank("actor"), rank("rollout")
    watch.add([engine, actor])
    with watch.only([actor]):
        watch.remove([engine])
    assert watch.watched == [actor]
