"""Dataclasses whose fields are metrics: each field names the metric that it holds. Pure."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_KEY = "metric"


def metric(key: str) -> Any:
    """A field that holds the metric `key` of `metrics.jsonl`: `loss: float = metric("policy/loss")`."""
    return field(metadata={_KEY: key})


def measured(stats: DataclassInstance | None) -> dict[str, float]:
    """Key → value of the fields that are made by `metric`, also of dataclasses in other fields; those that are None are
    left out. Empty for None.

    Example: `{"policy/loss": 0.02, "policy/clip_fraction": 0.1}`.
    """
    if stats is None:
        return {}
    found = {f.metadata[_KEY]: getattr(stats, f.name) for f in fields(stats) if _KEY in f.metadata}
    values = [getattr(stats, f.name) for f in fields(stats)]
    inner = [measured(value) for value in values if is_dataclass(value) and not isinstance(value, type)]
    own = {key: value for key, value in found.items() if value is not None}
    return {key: value for part in (own, *inner) for key, value in part.items()}
