"""All metrics that a run may report: the declared ones, and those that it names itself. Pure.

A reward function names `format_ok`; `reward/format_ok/mean` and `reward/format_ok/std` are metrics then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.metric_types import Chart, Metric
from orchestrator.metrics import METRICS

NAMED_NUMBERS = {
    "reward": "What the reward says beside its score under the name {}",
    "environment": "What the environment counts under the name {}, summed over the turns of a conversation",
    "score": "Score that the ensemble's member {} gives",
}
"""First part of a key → meaning of the number whose name follows."""
MEMBERS = Chart("Scores of the members")
"""All members of an ensemble."""
STATISTICS = {"mean": "mean over the batch", "std": "its standard deviation over the batch (biased)"}
"""Last part of a key → what is computed of the number."""


def metric_of(key: str) -> Metric | None:
    """The metric of a key; None if there is none."""
    found = re.fullmatch(rf"({'|'.join(NAMED_NUMBERS)})/(.+)/({'|'.join(STATISTICS)})", key)
    if key in METRICS or found is None:
        return METRICS.get(key)
    group, name, statistic = found.groups()
    text = f"{NAMED_NUMBERS[group].format(name)}; {STATISTICS[statistic]}"
    if statistic == "std":
        return Metric(key, "", text)
    chart = MEMBERS if group == "score" else Chart(f"{group.capitalize()}: {name}")
    return Metric(key, "", text, chart, name)


def metrics_in(keys: Iterable[str]) -> dict[str, Metric]:
    """Key → metric of those of `keys` that are known: the declared ones in their order, then the others in theirs."""
    given = dict.fromkeys(keys)
    ordered = [*(key for key in METRICS if key in given), *(key for key in given if key not in METRICS)]
    return {key: metric for key in ordered if (metric := metric_of(key)) is not None}


def check_known(keys: Sequence[str]) -> None:
    """Raise ValueError if a key is not declared."""
    unknown = [key for key in keys if metric_of(key) is None]
    if unknown:
        raise ValueError(f"metric {', '.join(unknown)} is not declared; add it to orchestrator/metrics.py")
