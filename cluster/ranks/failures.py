"""Finds the rank that failed first: errors of ranks flow in, one message with role, rank, node and log lines flows out.

A rank that dies breaks the collectives of its peers, so several failures arrive at once. The culprit is a death before
an ordinary exception, and that before an error that looks like a peer's fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.errors import ClusterError, RankFailure

if TYPE_CHECKING:
    from cluster.ranks.identity import Identity

LOG_LINES = 20
LOG_TAIL_BYTES = 64 * 1024
DEVICE_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc",
    "execution_failed",
)
"""Parts of torch's, Triton's and the libraries' errors after which a process cannot use its device any more: a kernel
failed, and the context with it."""
PEER_FAULTS = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe", "processgroup", "tcpstore", "c10d")


def log_tail(log: str) -> str:
    """The last lines of a rank's log, indented; or its path, if this node cannot read it."""
    path = Path(log)
    if not path.is_file():
        return f"its log is {log} on its node"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"last lines of {log}:", *(f"  | {line}" for line in lines)])


def raised(who: Identity, method: str, seconds: float, error: Exception) -> RankFailure:
    """The failure for an exception of a role's method; made in the rank itself, which must end after a Death."""
    message = f"{who} raised {type(error).__name__} in {method} after {seconds:.1f} s: {error}\n"
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    if _lost_device(error):
        why = "its process is ended: it has lost its device, and each later call would fail, too\n"
        return Death(f"{message}{why}{log_tail(who.log)}", who=who, exception=kind)
    message += log_tail(who.log)
    return RankFailure(message, who=who, exception=kind, consequence=looks_like_a_peers_fault(error))


def from_ray(who: Identity, method: str, error: RayError) -> ClusterError:
    """The failure behind an error that Ray reported for a call of `method` on the rank `who`."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ClusterError):
        return cause
    if isinstance(cause, RayActorError) and not isinstance(error, RayTaskError):
        return Death(f"{who} died in {method}: {_one_line(cause)}\n{log_tail(who.log)}", who=who)
    message = f"{who} failed in {method}: {type(cause).__name__}: {_one_line(cause)}\n{log_tail(who.log)}"
    return RankFailure(message, who=who)


class Death(RankFailure):
    """The rank's process has ended."""


def culprit(failures: Sequence[ClusterError]) -> ClusterError:
    """The most likely cause; the last line of its message names the other failures."""
    first = min(failures, key=_blame)
    others = dict.fromkeys(str(f).splitlines()[0] for f in failures if f is not first)
    others.pop(str(first).splitlines()[0], None)
    if others:
        first.args = ("\n".join([str(first), *(f"also: {line}" for line in others)]),)
    return first


def looks_like_a_peers_fault(error: Exception) -> bool:
    """Whether an error is a broken collective or connection, which another rank may have caused."""
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in PEER_FAULTS)


def _lost_device(error: BaseException) -> bool:
    """Whether the exception, or one that it came from, says that the process cannot use its device any more.

    A role's own error may quote what a function or a service of the user has said; it is a kind of its own.
    """
    seen, now = list[BaseException](), [error]
    while now:
        one = now.pop()
        if one in seen:
            continue
        seen.append(one)
        now += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        raised_by_torch = type(one) is RuntimeError or type(one).__name__ == "AcceleratorError"
        if raised_by_torch and any(sign in str(one).lower() for sign in DEVICE_LOST):
            return True
    return False


def _blame(failure: ClusterError) -> int:
    if isinstance(failure, Death):
        return 0
    return 2 if isinstance(failure, RankFailure) and failure.consequence else 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
