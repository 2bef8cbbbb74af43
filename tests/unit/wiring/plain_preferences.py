"""A reward model from comparisons, in plain torch and float64 (Ouyang et al., arXiv 2203.02155, equation 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.unit.wiring.plain import Adam, Network, Rows, Said, classifier


class Trainer:
    """`began`: parameters as they were at first."""

    def __init__(self, said: Said, steps: int, began: Mapping[str, Tensor]) -> None:
        folder = json.loads((Path(said["model"]["path"]) / "config.json").read_text())
        self.pooling = said["pooling"] or folder.get("score_pooling", "last")
        self.network: Network = classifier(said["model"]["path"], began)
        if said["freeze_backbone"]:
            self.network.trained = {"score.weight": self.network.values["score.weight"]}
        self.adam = Adam(self.network, said["optimizer"], steps)

    def scores(self, batch: Any) -> Tensor:
        """Of each row of Preferences."""
        width = batch.token_ids.shape[1]
        columns, rows = torch.arange(width), Rows(batch.token_ids, batch.lengths, *[torch.zeros(0)] * 3)
        numbers = self.network.numbers(rows)
        if self.pooling == "mean":
            return (numbers * (columns < batch.lengths[:, None])).sum(1) / batch.lengths
        return numbers.gather(1, batch.lengths[:, None] - 1)[:, 0]

    def step(self, batch: Any) -> dict[str, float]:
        """One optimizer step on all pairs of each group that are not equal."""
        scores, losses = self.scores(batch), []
        for better in range(len(scores)):
            for worse in range(len(scores)):
                if batch.groups[better] == batch.groups[worse] and batch.ranks[better] > batch.ranks[worse]:
                    right = torch.sigmoid(scores[better] - scores[worse])
                    certain = batch.certainty[better]
                    losses.append(-certain * right.log() - (1 - certain) * (1 - right).log())
        loss = torch.stack(losses).mean()
        norm, rate = self.adam.step(loss)
        return {"loss": float(loss.detach()), "gradient_norm": norm, "learning_rate": rate}
