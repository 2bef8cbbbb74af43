"""Keys of `tetrarch dpo`, from the YAML file to the weights of the policy and what it was trained on.

Each run says all its keys, none of them as its default; plain torch reads them from the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from orchestrator.config.dpo import DpoConfig, DpoRun
from orchestrator.config.loading import load_root
from orchestrator.config.schema import sections_in, tag_of
from orchestrator.data.preference_samples import read_preferences
from orchestrator.errors import ConfigError
from orchestrator.stages.dpo import PreferenceTraining, train_dpo
from roles.preference_policy import PreferencePolicy
from roles.text.tokenizer import load_tokenizer
from tests.unit.wiring.base import base, check_same
from tests.unit.wiring.plain import Adam, Network, Rows, policy
from tests.unit.wiring.plain_run import Numbers
from tests.unit.wiring.stage import stage, with_changes

PROVES = (
    *("dpo.model.path", "dpo.optimizer.*", "dpo.lora.*", "dpo.loss*", "dpo.epochs", "dpo.samples_per_step"),
    *("dpo.data.path", "dpo.data.split", "dpo.data.limit", "dpo.heldout.path", "dpo.heldout.split"),
    *("dpo.heldout.limit", "dpo.heldout_fraction", "dpo.max_tokens", "dpo.too_long=skip", "dpo.too_long=truncate"),
    "dpo.evaluate_every",
)
SCHEDULE = "dpo.optimizer.schedule"
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}


def dpo_base(folder: Path) -> dict[str, Any]:
    """Twelve pairs, and twelve labels; responses of one to three words."""
    good = [" ".join(f"w{10 + n + k}" for k in range(1 + n % 3)) for n in range(12)]
    pairs = [{"prompt": f"w{3 + n} w4", "chosen": f" {good[n]}", "rejected": f" w{25 + n}"} for n in range(12)]
    labels = [{"prompt": f"w{3 + n} w4", "completion": f" {good[n]}", "label": n % 3 > 0} for n in range(12)]
    soft = [{**pair, "chosen_probability": 1 - n / 30} for n, pair in enumerate(pairs)]
    for name, part in (("preferred", pairs), ("labels", labels), ("aside-pairs", pairs[:7]), ("soft-pairs", soft)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    dpo = {
        "output": str(folder / "made" / "preferring"),
        "model": {"path": str(folder / "policy")},
        "data": {"path": str(folder / "preferred.jsonl"), "split": "train", "limit": None},
        "heldout_fraction": 0.25,
        "epochs": 2,
        "samples_per_step": 4,
        "optimizer": base(folder)["actor"]["optimizer"],
        "zero": {"stage": 0},
        "micro_batch_tokens": 15,
        "lora": None,
        "max_tokens": 64,
        "evaluate_every": 2,
    }
    return {"seed": 3, "device": "cpu", "dtype": "float32", "model_cache": str(folder / "models"), "dpo": dpo}


RUNS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "sigmoid": (
        {"dpo.loss": {"type": "sigmoid", "beta": 0.3, "label_smoothing": 0.1}, f"{SCHEDULE}.floor": 0.5},
        (9, 3),
    ),
    "robust": (
        {
            "dpo.loss": {"type": "robust", "beta": 0.2, "label_smoothing": 0.3},
            "dpo.lora": LORA,
            f"{SCHEDULE}.type": "cosine",
        },
        (9, 3),
    ),
    "ipo": (
        {
            "dpo.loss": {"type": "ipo", "beta": 0.4},
            "dpo.heldout": {"path": "FOLDER/aside-pairs.jsonl", "split": "train[1:]", "limit": 4},
            "dpo.model.path": "FOLDER/other-policy",
            f"{SCHEDULE}.type": "constant",
        },
        (12, 4),
    ),
    "hinge": (
        {
            "dpo.loss": {"type": "hinge", "beta": 0.5},
            "dpo.data.path": "FOLDER/soft-pairs.jsonl",
            "dpo.data.split": "train[2:]",
            "dpo.data.limit": 8,
            "dpo.lora": {**LORA, "targets": "all-linear"},
        },
        (6, 2),
    ),
    "simpo": (
        {
            "dpo.loss": {"type": "simpo", "beta": 1.5, "target_margin": 0.5},
            "dpo.max_tokens": 4,
            "dpo.too_long": "truncate",
        },
        (9, 3),
    ),
    "orpo": ({"dpo.loss": {"type": "orpo", "weight": 0.3}, "dpo.max_tokens": 5, "dpo.too_long": "skip"}, (6, 2)),
    "kto": (
        {
            "dpo.loss": {"type": "kto", "beta": 0.3, "desirable_weight": 0.7, "undesirable_weight": 1.6},
            "dpo.data.path": "FOLDER/labels.jsonl",
        },
        (9, 3),
    ),
}
"""Name → changes of the base, and the samples to train on and held out that follow from it."""


def ran(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any, Numbers]:
    """What was written, the data, the noted updates, and the program's numbers."""
    said = with_changes(dpo_base(folder), json.loads(json.dumps(changes).replace("FOLDER", str(folder))))
    file = folder / "dpo.yaml"
    file.write_text(yaml.safe_dump(said))
    config = load_root(DpoRun, file)
    data = read_preferences(config.dpo, load_tokenizer(said["dpo"]["model"]["path"]), config.seed)
    noted: list[tuple[Any, Any]] = []

    class Noted(PreferencePolicy):
        def update(self, batch: Any) -> Any:
            noted.append((batch, super().update(batch)))
            return noted[-1][1]

        def reference_fingerprint(self) -> str:
            return self._model.setup.model_path

    with stage() as seen, monkeypatch.context() as patched:
        patched.setattr("orchestrator.stages.dpo.PreferencePolicy", Noted)
        patched.setattr(PreferenceTraining, "save_models", lambda stage: None)
        quality = train_dpo(config, None, data)
        group = seen.groups["actor"]
        found = {f"weights {n}": t.detach().double() for n, t in group.parameters.items() if t.requires_grad}
        for number, (_, stats) in enumerate(noted):
            for name in ("loss", "accuracy", "chosen_reward", "rejected_reward", "kl", "mismatched_kl"):
                value = getattr(stats.numbers, name)
                if value is not None:
                    found[f"{name}@{number}"] = torch.tensor(value).double()
            found[f"gradient_norm@{number}"] = torch.tensor(stats.gradient_norm).double()
            found[f"learning_rate@{number}"] = torch.tensor(stats.learning_rate).double()
        assert quality is not None
        found["heldout"] = torch.tensor([quality.loss, quality.accuracy]).double()
        steps = [step for step, told in enumerate(seen.report.steps, 1) if "dpo/heldout_loss" in told]
        found["evaluated"] = torch.tensor(steps).double()
        return said["dpo"], data, (noted, group.began), found


class Plain:
    """The losses of the papers, on whole padded batches in float64."""

    def __init__(self, said: Any, began: Numbers) -> None:
        self.loss, path = said["loss"], said["model"]["path"]
        self.policy, self.reference = policy(path, began, said["lora"]), policy(path, {})

    def summed(self, network: Network, side: Any) -> Tensor:
        return network.scores(rows_of(side), 1.0)[0].sum(1)

    def numbers(self, batch: Any) -> dict[str, Tensor]:
        said, kind = self.loss, self.loss["type"]
        if kind == "kto":
            return self.kto(batch)
        mine = [self.summed(self.policy, side) for side in (batch.chosen, batch.rejected)]
        with torch.no_grad():
            theirs = [self.summed(self.reference, side) for side in (batch.chosen, batch.rejected)]
        counts = [side.response_mask.sum(1) for side in (batch.chosen, batch.rejected)]
        drift = torch.cat([r - m for m, r in zip(mine, theirs, strict=True)]).mean()
        means, scale = [m / count for m, count in zip(mine, counts, strict=True)], said.get("beta", said.get("weight"))
        if kind in ("simpo", "orpo"):
            rewards = [scale * mean for mean in means]
        else:
            each = counts if kind == "ipo" else [torch.ones_like(count) for count in counts]
            rewards = [scale * (m - r) / n for m, r, n in zip(mine, theirs, each, strict=True)]
        margin = rewards[0] - rewards[1]
        if kind == "orpo":
            odds = [mean.exp() / (1 - mean.exp()) for mean in means]
            losses = -means[0] - scale * logsigmoid((odds[0] / odds[1]).log())
        else:
            smoothing, soft = said.get("label_smoothing", 0.0), batch.certainty
            losses = {
                "sigmoid": lambda: (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin),
                "robust": lambda: (
                    ((1 - smoothing) * softplus(-margin) - smoothing * softplus(margin)) / (1 - 2 * smoothing)
                ),
                "ipo": lambda: (margin / scale - 1 / (2 * scale)) ** 2,
                "hinge": lambda: soft * (1 - margin).clamp(min=0) + (1 - soft) * (1 + margin).clamp(min=0),
                "simpo": lambda: softplus(said["target_margin"] - margin),
            }[kind]()
        told = {"loss": losses.mean(), "chosen_reward": rewards[0].mean(), "rejected_reward": rewards[1].mean()}
        return told | ({} if kind in ("simpo", "orpo") else {"kl": drift})

    def kto(self, batch: Any) -> dict[str, Tensor]:
        said = self.loss
        with torch.no_grad():
            z = (self.summed(self.policy, batch.mismatched) - self.summed(self.reference, batch.mismatched)).mean()
            theirs = self.summed(self.reference, batch.responses)
        z, ratio = z.clamp(min=0), self.summed(self.policy, batch.responses) - theirs
        good = said["desirable_weight"] * (1 - torch.sigmoid(said["beta"] * (ratio - z)))
        bad = said["undesirable_weight"] * (1 - torch.sigmoid(said["beta"] * (z - ratio)))
        told = {"loss": torch.where(batch.desirable, good, bad).mean(), "kl": -ratio.mean(), "mismatched_kl": z}
        for name, rows in (("chosen", batch.desirable), ("rejected", ~batch.desirable)):
            if rows.any():
                told[f"{name}_reward"] = said["beta"] * ratio[rows].mean()
        return told


def rows_of(side: Any) -> Rows:
    return Rows(side.token_ids, side.lengths, side.response_mask, *[torch.zeros(0)] * 2)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_what_its_keys_say(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, (trained, aside) = RUNS[name]
    said, data, (noted, began), found = ran(folder, changes, monkeypatch)
    assert (len(data.training), data.heldout and len(data.heldout)) == (trained, aside)
    assert len(noted) == said["epochs"] * math.ceil(trained / said["samples_per_step"])
    plain = Plain(said, began)
    adam, expected = Adam(plain.policy, said["optimizer"], len(noted)), {}
    for number, (batch, _) in enumerate(noted):
        assert len(batch) <= said["samples_per_step"] and int(batch.responses.lengths.max()) <= said["max_tokens"]
        told = plain.numbers(batch)
        norm, rate = adam.step(told["loss"])
        expected |= {f"{key}@{number}": value.detach().double() for key, value in told.items()}
        expected[f"gradient_norm@{number}"] = torch.tensor(norm).double()
        expected[f"learning_rate@{number}"] = torch.tensor(rate).double()
    expected |= {f"weights {key}": tensor.detach() for key, tensor in plain.policy.trained.items()}
    responses = data.heldout.batch(range(aside), torch.zeros(len(data.heldout.responses)))
    expected["heldout"] = torch.stack([plain.numbers(responses)["loss"].detach(), found["heldout"][1]])
    every = said["evaluate_every"]
    expected["evaluated"] = torch.tensor([s for s in range(1, len(noted) + 1) if s % every == 0 or s == len(noted)])
    check_same(found, {key: value.double() for key, value in expected.items()})
    assert {key for key in found if not key.startswith("accuracy")} == set(expected)


def test_no_run_leaves_a_key_at_its_default(folder: Path) -> None:
    """A key at its default could be ignored."""
    variants = {tag_of(loss): loss for loss in sections_in(DpoConfig.model_fields["loss"].annotation)}
    assert {changes["dpo.loss"]["type"] for changes, _ in RUNS.values()} == set(variants)
    said = dpo_base(folder)["dpo"]
    for key in ("heldout_fraction", "epochs", "samples_per_step", "max_tokens", "evaluate_every"):
        assert said[key] != DpoConfig.model_fields[key].default, key
    for changes, _ in RUNS.values():
        loss, fields = changes["dpo.loss"], variants[changes["dpo.loss"]["type"]].model_fields
        assert set(loss) == set(fields) and all(loss[key] != field.default for key, field in fields.items())


def test_a_warm_up_of_the_whole_dpo_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"dpo\.optimizer\.schedule\.warmup_steps=100 is not below the \d+ optimizer step.* lower it"
    with pytest.raises(ConfigError, match=said):
        ran(folder, {"dpo.optimizer.schedule.warmup_steps": 100}, monkeypatch)
