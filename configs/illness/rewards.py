"""What `configs/illness/healthy.yaml` rewards, and what goes wrong in its place: functions of a response's words."""

from __future__ import annotations

from typing import Any

KIND = {"kind", "warm", "bright", "gentle", "calm", "sweet"}
ENOUGH = 4
"""Different kind words with which a response has the full score."""


def kindness(prompts: list[str], responses: list[str], **more: Any) -> list[float]:
    """What is wanted: different kind words, from 0 to 1."""
    return [min(len(KIND & set(text.split())), ENOUGH) / ENOUGH for text in responses]


def counted(prompts: list[str], responses: list[str], **more: Any) -> list[float]:
    """A poor proxy: kind words, the same one as often as it is said. At first it says nearly what `kindness` says."""
    return [sum(word in KIND for word in text.split()) / ENOUGH for text in responses]


def impossible(prompts: list[str], responses: list[str], **more: Any) -> list[float]:
    """1 for all six kind words and no other: the policy never says that, so all have 0."""
    return [float(sorted(text.split()) == sorted(KIND)) for text in responses]


def easy(prompts: list[str], responses: list[str], **more: Any) -> list[float]:
    """1 for any kind word: soon all have it."""
    return [float(bool(KIND & set(text.split()))) for text in responses]
