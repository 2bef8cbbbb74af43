"""The base of every configuration section: frozen, and unknown keys are errors; and the kinds of values they share."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes of a file's name, as Linux has it; and of a whole path, with room for the names of what a run writes there."""

Dtype = Literal["float32", "bfloat16"]


def usable_path(path: str) -> str:
    """A path that the system can be asked for; `~` is the user's home."""
    expanded = os.path.expanduser(path)
    if "\0" in expanded:
        raise PydanticCustomError("path", "must not hold a NUL character")
    whole = os.fsencode(os.path.abspath(expanded))
    if len(whole) > LONGEST_PATH or max(map(len, whole.split(b"/"))) > LONGEST_NAME:
        limits = {"name": LONGEST_NAME, "all": LONGEST_PATH}
        raise PydanticCustomError("path", "must have at most {name} bytes in each name and {all} in all", limits)
    return expanded


PathText = Annotated[str, Field(min_length=1), AfterValidator(usable_path)]
"""Path of a file or folder (or name of something on a hub)."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
