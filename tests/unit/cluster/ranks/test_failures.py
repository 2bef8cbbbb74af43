"""Who is blamed, and in which words."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks import failures
from cluster.ranks.identity import Identity
from roles.errors import RewardError


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


def accelerator_error(text: str, code: int) -> Exception:
    error: Exception = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


ASSERTED = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (accelerator_error(ASSERTED, 710), True),
        (RuntimeError(ASSERTED), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (accelerator_error("HIP error: unspecified launch failure", 719), True),
        (accelerator_error("CUDA error: out of memory", 2), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (ValueError("the row says: CUDA error: device-side assert triggered"), False),
        (RuntimeError("shapes differ"), False),
        (RuntimeError("CUDA driver error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: invalid argument"), False),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"), False),
        (RewardError(f"the function raised RuntimeError: {ASSERTED}"), False),
        (RewardError(f"status 500 of the service: {ASSERTED}"), False),
    ],
)
def test_a_rank_that_has_lost_its_device_is_dead(who: Identity, error: Exception, lost: bool) -> None:
    outer = RuntimeError("the model failed")
    outer.__cause__ = error
    for raised in (error, outer):
        failure = pickle.loads(pickle.dumps(failures.raised(who, "score", 1.0, raised)))
        assert isinstance(failure, failures.Death) == lost and str(raised) in str(failure)
        assert ("its process is ended" in str(failure)) == lost
    assert list(failure.blamed) == [who] and "critic rank 3 (node node-7) raised RuntimeError in score" in str(failure)


def test_an_error_that_is_its_own_cause_is_looked_at_once(who: Identity) -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__context__, second.__context__ = second, first
    assert not isinstance(failures.raised(who, "score", 1.0, first), failures.Death)


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
