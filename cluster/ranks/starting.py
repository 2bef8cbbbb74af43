"""What each role is doing while its ranks start. Running constructions flow in; a few words for each role flow out.

The words come from two things that a rank says while it is busy: the functions that it is in, and the progress bar that
a library has written to its log last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ray

from cluster.ranks.calls import Call
from cluster.ranks.hangs import answered
from cluster.ranks.status import Status

ASKED_S = 0.5
"""Seconds for which the ranks' answers are waited for; who has not answered is starting its process."""
PROCESS = "starting its process"
READY = "ready"
BAR = re.compile(r"(?P<what>[A-Za-z][^\n\r:|]*):\s+\d+%[^\n\r]*?\b(?P<done>\d+)/(?P<all>\d+) \[")
"""A progress bar of tqdm, such as `Loading checkpoint shards:  33%|███  | 3/9 [00:04<00:08]`."""
MORE = re.compile(r"\n\s*\S")
"""A line that follows."""
SHARDS = re.compile(r"(?P<verb>\w+)\b.* shards")
FRAMES = {
    re.compile(r" (capture_model|capture_\w*graphs?)$"): "capturing CUDA graphs",
    re.compile(r"(_dynamo|_inductor)/|compilation/(backends|compiler_interface)\.py"): "compiling",
    re.compile(r" (determine_available_memory|profile_run)$"): "measuring the free memory",
    re.compile(r" (_?initialize_kv_caches?|initialize_from_config)$"): "making room for the KV cache",
    re.compile(r" (load_model|load_weights|from_pretrained|_load_pretrained_model)$"): "loading weights",
    re.compile(r" (init_process_group|init_distributed\w*|initialize_model_parallel|rendezvous)$"): "meeting its peers",
    re.compile(r"deepspeed/__init__\.py:\d+ initialize$"): "sharing out its weights",
    re.compile(r"roles/rollout_setup\.py:\d+ start_engine$"): "starting vLLM",
    re.compile(r"<frozen importlib|importlib"): "importing libraries",
}
"""A frame of a busy rank → what the rank does. The innermost frame that is one of these counts."""


def progress_of_starts(calls: Sequence[Call[Any]]) -> dict[str, str]:
    """Role → what it is doing, such as `{"actor": "loading weights 3/9", "critic": "ready"}`; of several ranks what the
    first one that is not ready does, and how many are ready."""
    receipts = [receipt for call in calls for receipt in call.receipts]
    ready = set(ray.wait(receipts, num_returns=len(receipts), timeout=0, fetch_local=False)[0]) if receipts else set()
    open_ranks = [r for c in calls for r, receipt in zip(c.ranks, c.receipts, strict=True) if receipt not in ready]
    asked = {rank: (rank.worker.status.remote(), rank.worker.log_end.remote()) for rank in open_ranks}
    found = answered([reference for pair in asked.values() for reference in pair], ASKED_S)
    told: dict[str, list[str]] = {}
    for call in calls:
        for rank, receipt in zip(call.ranks, call.receipts, strict=True):
            words = READY
            if receipt not in ready:
                status, log = asked[rank]
                words = doing(found.get(status), found.get(log, ""))
            told.setdefault(rank.identity.role, []).append(words)
    return {role: _together(words) for role, words in told.items()}


def doing(status: Status | None, log_end: str) -> str:
    """What a rank that starts is doing. `log_end`: the last characters of its log."""
    if status is None or not status.busy:
        return PROCESS
    bar = next(reversed(list(BAR.finditer(log_end))), None)
    if bar and int(bar["done"]) < int(bar["all"]) and not MORE.search(log_end, bar.end()):
        return _of_bar(bar)
    for frame in reversed(status.stack):
        words = next((words for pattern, words in FRAMES.items() if pattern.search(frame)), None)
        if words is not None:
            return words
    return "starting"


def _of_bar(bar: re.Match[str]) -> str:
    what, count = bar["what"].strip(), f"{bar['done']}/{bar['all']}"
    what = what[0].lower() + what[1:]
    shards = SHARDS.match(what)
    return f"{shards['verb']} {count} shards" if shards else f"{what} {count}"


def _together(words: Sequence[str]) -> str:
    open_words = [one for one in words if one != READY]
    if not open_words:
        return READY
    ready = len(words) - len(open_words)
    return f"{open_words[0]} ({ready}/{len(words)} ready)" if ready else open_words[0]
