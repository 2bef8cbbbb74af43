"""The golden values: inputs, and what OpenRLHF's, verl's, TRL's and the N+ authors' own functions make of them.

`golden.json` lists the cases with their parameters, tolerance, a note on where the authors disagree, and the commits of
the sources; `golden.npz` holds the arrays, float64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One call of the authors' functions."""

    name: str
    params: dict[str, Any]
    tolerance: float
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def mask(self) -> Tensor:
        """bool."""
        return self.inputs["mask"].bool()

    def check(self, output: str, ours: Tensor, tolerance: float | None = None) -> None:
        """`ours` is the authors' `output`."""
        bound = self.tolerance if tolerance is None else tolerance
        torch.testing.assert_close(
            ours.double(), self.outputs[output], rtol=bound, atol=bound, msg=lambda m: f"{self.name} {output}: {m}"
        )

    def __str__(self) -> str:
        return self.name


@cache
def _all() -> list[tuple[str, Case]]:
    arrays = np.load(HERE / "golden.npz")
    cases = []
    for entry in json.loads((HERE / "golden.json").read_text())["cases"]:
        name = entry["case"]
        found = {
            side: {key: torch.from_numpy(arrays[f"{name}/{folder}/{key}"]) for key in entry[side]}
            for side, folder in (("inputs", "in"), ("outputs", "out"))
        }
        cases.append((entry["fn"], Case(name, entry["params"], entry["tol"], **found)))
    return cases


def cases(function: str) -> list[Case]:
    """The cases of one function; there is at least one."""
    found = [case for fn, case in _all() if fn == function]
    if not found:
        raise KeyError(f"golden.json has no case of {function!r}")
    return found


def kinds() -> set[str]:
    """The functions that there are cases of."""
    return {fn for fn, _ in _all()}
