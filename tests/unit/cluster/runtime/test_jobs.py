"""Which cluster is meant, and what is said where none answers. A real job server: tests/integration/test_jobs.py."""

from __future__ import annotations

import inspect
import socket
import time

import pytest
from ray.job_submission import JobSubmissionClient

from cluster.errors import ClusterUnreachable
from cluster.runtime import jobs
from cluster.runtime.jobs import RayJobs, dashboard_address


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*jobs.ADDRESSES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_address_is_the_option_then_the_environment_then_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:8265")
    assert dashboard_address(None) == "http://b:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://a:8265/")
    assert dashboard_address(None) == "https://a:8265"
    assert dashboard_address("http://c:1") == "http://c:1"


def test_an_address_of_ray_itself_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ClusterUnreachable, match=r"RAY_ADDRESS=head:6379 is not .* --address http://HEAD:8265"):
        dashboard_address(None)


def test_ray_takes_a_time_limit() -> None:
    assert "kwargs" in inspect.signature(JobSubmissionClient._do_request).parameters


def test_nobody_there_and_somebody_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's address does not take the place of the one that is given."""
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:8265")
    monkeypatch.setattr(jobs._Client, "answer_s", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterUnreachable, match=f"no Ray cluster answers at {address}"):
            RayJobs(address)
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ClusterUnreachable, match=f"no Ray cluster answers at {address}"):
            RayJobs(address)
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("environment", "fix"),
    [
        ({}, "asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "hush"}, "does not take our token, what RAY_AUTH_TOKEN says"),
        ({"RAY_AUTH_MODE": "token"}, "~/.ray/auth_token"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_named_and_not_shown(
    environment: dict[str, str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fix in jobs._token_fix("http://head:8265")
    assert "hush" not in jobs._token_fix("http://head:8265")
