"""Keys of `tetrarch sft`, from the YAML file to the weights of the policy and what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from orchestrator.config.loading import load_root
from orchestrator.config.sft import SftRun
from orchestrator.data.demonstrations import read_demonstrations
from orchestrator.errors import ConfigError
from orchestrator.stages.sft import SupervisedTraining, train_sft
from roles.supervised import Supervised
from roles.text.tokenizer import load_tokenizer
from tests.unit.wiring.base import Case, base, case, check_moved, check_same
from tests.unit.wiring.plain import Adam, Rows, policy
from tests.unit.wiring.plain_run import Numbers
from tests.unit.wiring.stage import stage, with_changes

ROWS = 9


def sft_base(folder: Path) -> dict[str, Any]:
    said = [" ".join(f"w{10 + n + k}" for k in range(1 + n % 3)) for n in range(ROWS)]
    rows = [{"prompt": f"w{3 + n} w4", "completion": f" {said[n]}"} for n in range(ROWS)]
    for name, part in (("demonstrations", rows), ("reversed", rows[::-1]), ("aside", rows[3:6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    actor = base(folder)["actor"]
    sft = {
        "output": str(folder / "made" / "policy"),
        "model": {"path": str(folder / "policy")},
        "data": {"path": str(folder / "demonstrations.jsonl"), "split": "train", "limit": None},
        "heldout": None,
        "heldout_fraction": 0.25,
        "epochs": 1,
        "samples_per_step": 3,
        "optimizer": actor["optimizer"],
        "zero": {"stage": 0},
        "micro_batch_tokens": 10,
        "lora": None,
        "max_tokens": 64,
        "too_long": "error",
        "train_on_prompt": False,
    }
    return {"seed": 3, "device": "cpu", "dtype": "float32", "sft": sft}


def ran(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Numbers, Numbers]:
    """The program's numbers, and those of plain torch on the samples that it took."""
    written = with_changes(sft_base(folder), changes)
    file = folder / "sft.yaml"
    file.write_text(yaml.safe_dump(written))
    config, said = load_root(SftRun, file), written["sft"]
    data = read_demonstrations(config.sft, load_tokenizer(said["model"]["path"]), config.seed)
    batches: list[Any] = []
    told: list[Any] = []

    class Noted(Supervised):
        def update(self, share: Any) -> Any:
            batches.append(share.experience)
            told.append(super().update(share))
            return told[-1]

    with stage() as seen, monkeypatch.context() as patched:
        patched.setattr("orchestrator.stages.sft.Supervised", Noted)
        patched.setattr(SupervisedTraining, "save_models", lambda stage: None)
        quality = train_sft(config, None, data)
        trainer = seen.groups["actor"]
        found = {f"weights {n}": t.detach().double() for n, t in trainer.parameters.items() if t.requires_grad}
        for number, stats in enumerate(told):
            for name in ("loss", "tokens", "gradient_norm", "learning_rate"):
                found[f"{name}@{number}"] = torch.tensor(getattr(stats, name)).double()
        evaluated = [step for step, metrics in enumerate(seen.report.steps) if "sft/heldout_loss" in metrics]
        found["evaluated"] = torch.tensor(evaluated).double()
        found["heldout"] = torch.tensor(
            [len(data.heldout) if data.heldout else 0, quality.loss if quality else 0.0]
        ).double()
        network = policy(said["model"]["path"], trainer.began, said["lora"])
        adam = Adam(network, said["optimizer"], len(batches))
    expected: Numbers = {}
    for number, batch in enumerate(batches):
        assert len(batch) <= said["samples_per_step"] and int(batch.lengths.max()) <= said["max_tokens"]
        loss = -network.scores(rows_of(batch), 1.0)[0].sum() / batch.response_mask.sum()
        norm, rate = adam.step(loss)
        values = {"loss": float(loss.detach()), "gradient_norm": norm, "learning_rate": rate}
        expected |= {f"{name}@{number}": torch.tensor(value).double() for name, value in values.items()}
    expected |= {f"weights {name}": tensor.detach() for name, tensor in network.trained.items()}
    if data.heldout is not None:
        loss = -network.scores(rows_of(data.heldout), 1.0)[0].sum() / data.heldout.response_mask.sum()
        expected["heldout"] = torch.tensor([len(data.heldout), float(loss.detach())]).double()
    return found, expected


def rows_of(batch: Any) -> Rows:
    return Rows(batch.token_ids, batch.lengths, batch.response_mask, *[torch.zeros(0)] * 2)


def sft_cases(folder: Path) -> list[Case]:
    optimizer, schedule = "sft.optimizer", "sft.optimizer.schedule"
    longer, constant = {"sft.epochs": 3}, {f"{schedule}.type": "constant"}
    aside = {"sft.heldout": {"path": str(folder / "aside.jsonl"), "split": "train", "limit": None}}
    short, lora = {"sft.max_tokens": 5, "sft.too_long": "skip"}, {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
    adapted, truncated = {"sft.lora": lora}, {**short, "sft.too_long": "truncate"}
    return [
        case("sft.model.path", "weights", {"sft.model.path": str(folder / "other-policy")}),
        case("sft.data.path", "weights", {"sft.data.path": str(folder / "reversed.jsonl")}),
        case("sft.data.limit", "weights", 5),
        case("sft.data.split", "weights", "train[3:]"),
        case("sft.heldout.path", "heldout", {"sft.heldout.path": str(folder / "reversed.jsonl")}, aside),
        case("sft.heldout.limit", "heldout", {"sft.heldout.limit": 2}, aside),
        case("sft.heldout.split", "heldout", {"sft.heldout.split": "train[1:]"}, aside),
        case("sft.heldout_fraction", "weights heldout", 0.5),
        case("sft.epochs", "weights", 3),
        case("sft.samples_per_step", "weights", 2),
        case("sft.max_tokens", "weights", {"sft.max_tokens": 4}, {**short, f"{schedule}.warmup_steps": 0}),
        case("sft.too_long=truncate", "weights", {"sft.too_long": "truncate"}, short),
        case("sft.too_long=skip", "weights", {"sft.too_long": "skip"}, truncated),
        case("sft.train_on_prompt", "weights tokens", True),
        case("sft.evaluate_every", "evaluated", {"sft.evaluate_every": 1}, longer),
        case("sft.lora.rank", "weights", {"sft.lora": {**lora, "rank": 1}}, adapted),
        case("sft.lora.alpha", "weights", {"sft.lora": {**lora, "alpha": 9.0}}, adapted),
        case("sft.lora.targets", "weights", {"sft.lora": {**lora, "targets": ["v_proj"]}}, adapted),
        case("sft.lora.targets=all-linear", "weights", {"sft.lora": {**lora, "targets": "all-linear"}}, adapted),
        case(f"{optimizer}.learning_rate", "weights", 0.004),
        case(f"{optimizer}.betas", "weights", [0.5, 0.99]),
        case(f"{optimizer}.epsilon", "weights", 1e-1),
        case(f"{optimizer}.weight_decay", "weights", 0.7),
        case(f"{optimizer}.max_gradient_norm", "weights", 0.01),
        case(f"{schedule}.type=constant", "weights", constant, longer),
        case(f"{schedule}.type=linear", "weights", {f"{schedule}.type": "linear"}, {**longer, **constant}),
        case(f"{schedule}.type=cosine", "weights", {f"{schedule}.type": "cosine"}, longer),
        case(f"{schedule}.warmup_steps", "weights", 0),
        case(f"{schedule}.floor", "weights", 0.5, longer),
        case("seed", "weights", 9),
    ]


CASES = sft_cases(Path("FOLDER"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_key_of_the_fine_tuning_does_what_it_says(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = sft_cases(folder)[number]
    first, plain_first = ran(folder, case.given, monkeypatch)
    second, plain_second = ran(folder, {**case.given, **case.change}, monkeypatch)
    check_same(first, plain_first)
    check_same(second, plain_second)
    check_moved({**first, **plain_first}, {**second, **plain_second}, case.moves)


def test_a_warm_up_of_the_whole_sft_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"sft\.optimizer\.schedule\.warmup_steps=100 is not below the \d+ optimizer step.* lower it"
    with pytest.raises(ConfigError, match=said):
        ran(folder, {"sft.optimizer.schedule.warmup_steps": 100}, monkeypatch)
