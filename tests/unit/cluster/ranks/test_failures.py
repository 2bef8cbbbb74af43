"""Who is blamed, and in which words."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks import failures
from cluster.ranks.identity import Identity


@pytest.fixture
def who(tmp_path: Path) -> Identity:
    log = tmp_path / "critic-3.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    return Identity("critic", 3, "node-7", str(log))


def test_an_exception_names_role_rank_node_and_log(who: Identity) -> None:
    failure = failures.raised(who, "update", 1.25, ValueError("bad shape"))
    text = str(pickle.loads(pickle.dumps(failure)))
    assert text.startswith("critic rank 3 (node node-7) raised ValueError in update after 1.2 s: bad shape\n")
    assert text.count("  | line ") == failures.LOG_LINES and text.endswith("  | line 99")


def test_a_log_on_another_node_is_pointed_to(who: Identity) -> None:
    elsewhere = Identity(who.role, who.rank, who.node, "/nowhere/critic-3.log")
    assert str(failures.raised(elsewhere, "update", 0, ValueError())).endswith(
        "its log is /nowhere/critic-3.log on its node"
    )


def test_a_death_is_told_from_an_exception(who: Identity) -> None:
    died = failures.from_ray(who, "update", ActorDiedError())
    assert isinstance(died, failures.Death)
    assert str(died).startswith("critic rank 3 (node node-7) died in update: ")
    inner = DeadlineExceeded("rollout.load did not end")
    assert failures.from_ray(who, "push", RayTaskError("push", "", inner)) is inner
    unknown = failures.from_ray(who, "update", RayTaskError("update", "", ImportError("no module roles.x")))
    assert "failed in update: ImportError: no module roles.x" in str(unknown)


def test_the_culprit_comes_before_its_consequences(who: Identity) -> None:
    reset = failures.raised(who, "update", 1, RuntimeError("[gloo/transport/tcp] Connection closed by peer"))
    ordinary = failures.raised(who, "update", 1, ValueError("mine"))
    death = failures.from_ray(who, "update", ActorDiedError())
    assert reset.consequence and not ordinary.consequence
    assert pickle.loads(pickle.dumps(reset)).consequence
    assert failures.culprit([reset, ordinary]) is ordinary
    assert failures.culprit([reset, ordinary, death]) is death
    assert "also: critic rank 3 (node node-7) raised RuntimeError in update" in str(death)
    assert failures.culprit([RankFailure("a"), RankFailure("a")]).args == ("a",)
