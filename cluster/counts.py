"""A number and what it counts, in words. Pure."""

from __future__ import annotations


def counted(count: float, unit: str) -> str:
    """Such as `1 step`, `2,048 tokens`, `0.5 GPUs`."""
    return f"{count:,.12g} {unit}{'' if count == 1 else 's'}"


def spanned(low: int, high: int, unit: str) -> str:
    """From the least to the most of what is counted, such as `2 to 5 tokens`; `2 tokens` if they are the same."""
    return counted(high, unit) if low == high else f"{low:,} to {counted(high, unit)}"
