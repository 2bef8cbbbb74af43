"""A cluster's nodes and jobs, over the HTTP address of its dashboard: what `ray job submit` uses.

An address, a command and a working directory flow in; nodes, a job's log and how it ended flow out. The token that a
cluster may ask for is read by Ray itself, from where RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH say; it is shown nowhere.
`cluster.runtime.job_follower` follows a log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from typing import Any

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from cluster.errors import ClusterError, ClusterUnreachable
from cluster.placement.node import Node
from cluster.runtime.job_follower import JobState
from cluster.runtime.living_nodes import as_node
from cluster.runtime.ray_cluster import CONNECT_S

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables with the address, as for `ray job submit`; the first that is set counts."""
LOCAL = "http://127.0.0.1:8265"
ANSWER_S = 120.0
"""Seconds to wait for the answer to one request, including an upload."""
QUIET_S = 120.0
"""Seconds without a line of log after which a connection is replaced by a new one."""
STOP_S = 60.0
"""Least seconds that a stopped job has to end by itself; Ray's default of 3 s would kill it while it ends its ranks."""
MOST_NODES = 10_000
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Ray's modules whose messages on stderr repeat our own."""


def dashboard_address(given: str | None) -> str:
    """The HTTP address of a cluster's dashboard: the given one, else the environment's, else this machine's."""
    source = "--address"
    if given is None:
        source, given = next(((name, os.environ[name]) for name in ADDRESSES if os.environ.get(name)), ("", LOCAL))
    if not given.startswith(("http://", "https://")):
        raise ClusterUnreachable(
            f"{source}={given} is not the address of a dashboard; say --address http://HEAD:8265 (`ray start` tells it)"
        )
    return given.rstrip("/")


class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._named_errors(), _without_addresses():
            self._client = _Client(address)
        self._client.answer_s = ANSWER_S

    def nodes(self) -> list[Node]:
        """The resources of the living nodes."""
        with self._named_errors(), _without_addresses():
            found = list_nodes(self.address, limit=MOST_NODES, timeout=int(CONNECT_S))
        return [as_node(node.node_name, node.resources_total) for node in found if node.state == "ALIVE"]

    def submit(self, name: str, command: Sequence[str], working_dir: Path, stop_s: float = STOP_S) -> str:
        """Upload the working directory and start the command in it, on the head node; the job's id flows out. `stop_s`:
        seconds that it has to end by itself when it is stopped."""
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": f"{stop_s:.0f}"}
        with self._named_errors():
            try:
                return self._client.submit_job(
                    entrypoint=join(command),
                    submission_id=name,
                    runtime_env={"working_dir": str(working_dir), "env_vars": environment},
                )
            except ValueError as error:  # the working directory is too large
                raise ClusterError(
                    f"the working directory {working_dir} was not uploaded: {error} What .gitignore or .rayignore "
                    "names stays here"
                ) from error

    def state(self, job: str) -> JobState:
        """The state of the job."""
        with self._named_errors():
            info = self._client.get_job_info(job)
        return JobState(str(info.status.value), info.driver_exit_code, info.message or "")

    def stop(self, job: str) -> None:
        """Ask the job to end: SIGTERM, and SIGKILL after the `stop_s` of `submit`."""
        with self._named_errors():
            self._client.stop_job(job)

    def log(self, job: str) -> Iterator[str]:
        """The log from its beginning, in pieces as they come, until it ends or none came for QUIET_S."""
        pieces = self._client.tail_job_logs(job)

        async def following() -> str | None:
            try:
                return await asyncio.wait_for(anext(pieces), QUIET_S)
            except (StopAsyncIteration, TimeoutError):
                return None

        with asyncio.Runner() as runner:
            while True:
                with self._named_errors():
                    piece = runner.run(following())
                if piece is None:
                    return
                yield piece

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise ClusterUnreachable(_token_fix(self.address)) from None
        except (OSError, RuntimeError, LookupError, ClientError, RayStateApiException) as error:
            if isinstance(error, ClusterError):
                raise
            if "status code" in str(error):
                raise ClusterError(f"the cluster at {self.address} does not do it: {error}") from error
            raise ClusterUnreachable(
                f"no Ray cluster answers at {self.address}: {str(error).rstrip('.')}. Look whether it runs with its "
                "dashboard, and whether that port is open from here"
            ) from error


class _Client(JobSubmissionClient):
    """Ray's client, with a timeout for each request."""

    answer_s = CONNECT_S

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, self.answer_s), **kwargs)


def _token_fix(address: str) -> str:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            f"the cluster at {address} asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file "
            "that holds it (or RAY_AUTH_TOKEN to itself)"
        )
    given = next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), None)
    said = f"what {given} says" if given else "~/.ray/auth_token (RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set)"
    return f"the cluster at {address} does not take our token, {said}; set RAY_AUTH_TOKEN_PATH to the file with its own"


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Context without Ray's address variables, which Ray prefers to an address that it is given."""
    kept = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
