"""The day that chat templates write as today (`strftime_now`): one for a whole run, over midnight and `--resume` too,
so that its prompts stay what they were. Where no day is kept it is today. Imports only the standard library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

DAY = "TETRARCH_DAY"
"""Environment variable of every process of a run, and key of a checkpoint's state: the kept day, `2026-01-31`."""


def keep_day(day: str | None) -> None:
    """From now on templates write `day`; None: the day that is kept already, or today."""
    os.environ[DAY] = day or os.environ.get(DAY) or date.today().isoformat()


def keep_day_of(state: Mapping[str, Any] | None) -> None:
    """From now on templates write the day of the run whose checkpoint has this state, unless the user says a day;
    None: of a run without a checkpoint."""
    keep_day(os.environ.get(DAY) or (state or {}).get(DAY))


def kept_day() -> dict[str, str]:
    """The kept day as an environment variable; empty if none is kept."""
    return {DAY: os.environ[DAY]} if DAY in os.environ else {}


def dated(template: Any) -> dict[str, Any]:
    """What a chat template that writes the day must be rendered with; nothing for any other."""
    return {"strftime_now": _strftime_now} if "strftime_now" in str(template) else {}


def _strftime_now(form: str) -> str:
    kept = os.environ.get(DAY)
    return (datetime.fromisoformat(kept) if kept else datetime.now()).strftime(form)
