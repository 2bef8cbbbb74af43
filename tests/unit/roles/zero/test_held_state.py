"""From any number of ranks and any ZeRO stage to any other: every number of the training state arrives at its place.

All ranks of a group stand in this process. Their parameters are cut as DeepSpeed cuts them: stage 3 each parameter by
itself, stages 1 and 2 the concatenated parameters of a group, both with padding; its own functions link them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import link_hp_params
from torch import Tensor, nn

from roles.errors import RoleError
from roles.zero.average import Average
from roles.zero.held_state import HeldState
from roles.zero.optimizer import renew_rates, scale_rates

SHAPES = {"embed": (13, 4), "lora.weight": (3, 5), "norm": (5,), "bias": (1,), "frozen.weight": (7, 3)}
GROUPS = (("embed", "lora.weight"), ("norm", "bias"))
"""Matrices and vectors, as with weight decay."""
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def values(seed: int) -> dict[tuple[str, str], Tensor]:
    """(kind, name) → what it is in full."""
    draw = torch.Generator().manual_seed(seed)
    return {(k, n): torch.randn(s, generator=draw) for k in (*KINDS, "average") for n, s in SHAPES.items()}


def padded(tensor: Tensor, multiple: int) -> Tensor:
    return nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % multiple), value=torch.nan)


class Rank:
    """One rank of `ranks` under ZeRO `stage`, with `whole` as its state."""

    def __init__(self, stage: str, ranks: int, rank: int, whole: dict[tuple[str, str], Tensor], step: int) -> None:
        self.stage, self.ranks, self.rank, self.whole = stage, ranks, rank, whole
        self.module = nn.Module()
        for name, shape in SHAPES.items():
            parameter: Any = nn.Parameter(torch.zeros(shape), requires_grad=not name.startswith("frozen"))
            parameter.data.copy_(whole["weight", name])
            if stage == "3":
                parameter.ds_numel = parameter.numel()
                parameter.ds_tensor = self.cut(padded(parameter.data, ranks)).clone()
                parameter.ds_tensor.ds_numel = len(parameter.ds_tensor)
            self.module.register_parameter(name.replace(".", "_"), parameter)
        self.named = dict(zip(SHAPES, self.module.parameters(), strict=True))
        self.average = Average(self.module, 0.5, torch.device("cpu"))
        for (_, _, mean), name in zip(self.average.held(), SHAPES, strict=True):
            average = whole["average", name]
            mean.copy_(self.cut(padded(average, ranks)) if stage == "3" else average)
        self.basic = torch.optim.AdamW([{"params": self.holders(group)} for group in GROUPS], lr=1e-3, fused=True)
        holders = self.own
        if step:
            for holder, flat in zip(holders, zip(*map(self.held, KINDS[1:]), strict=True), strict=True):
                self.basic.state[holder] = {
                    "step": torch.tensor(float(step)),
                    **dict(zip(KINDS[1:], flat, strict=True)),
                }
        engine = SimpleNamespace(basic_optimizer=self.basic, optimizer=self.wrapped(holders))
        engine.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.basic, lambda done: 1 / (1 + done))
        self.schedule = engine.lr_scheduler
        self.state = HeldState(engine, self.module, self.average, rank, with_frozen=True)

    def cut(self, flat: Tensor) -> Tensor:
        size = len(flat) // self.ranks
        return flat[self.rank * size : (self.rank + 1) * size]

    @property
    def own(self) -> list[Tensor]:
        """The tensors that the optimizer steps."""
        return [holder for group in self.basic.param_groups for holder in group["params"]]

    def held(self, kind: str) -> list[Tensor]:
        """What the rank holds of a kind, a tensor for each holder."""
        return [holder for group in GROUPS for holder in self.holders(group, kind)]

    def holders(self, group: Sequence[str], kind: str = "weight") -> list[Tensor]:
        whole = [self.whole[kind, name] for name in group]
        if self.stage.startswith("0"):
            same = kind == "weight" and self.stage == "0"
            return [self.named[name] if same else tensor.clone() for name, tensor in zip(group, whole, strict=True)]
        if self.stage == "3":
            return [torch.cat([self.cut(padded(tensor, self.ranks)) for tensor in whole])]
        return [self.cut(padded(torch.cat([tensor.flatten() for tensor in whole]), 2 * self.ranks)).clone()]

    def wrapped(self, holders: list[Tensor]) -> Any:
        """DeepSpeed's optimizer of the stage, with what is read of it."""
        groups: list[list[Any]] = [[self.named[name] for name in group] for group in GROUPS]
        kind = {
            **{"3": DeepSpeedZeroOptimizer_Stage3, "2": DeepSpeedZeroOptimizer, "1": BF16_Optimizer},
            **{"0 in bfloat16": FP16_UnfusedOptimizer},
        }.get(self.stage)
        if kind is None:
            return self.basic
        optimizer: Any = object.__new__(kind)
        optimizer.fp16_groups = optimizer.bit16_groups = optimizer.bf16_groups = groups
        optimizer.fp32_partitioned_groups_flat = optimizer.single_partition_of_fp32_groups = holders
        optimizer.fp32_groups_flat_partition = holders
        optimizer.fp32_groups = [holders[:2], holders[2:]]
        told: Any = {}
        for name in ("checkpoint_event_prologue", "checkpoint_event_epilogue", "update_lp_params"):
            setattr(optimizer, name, lambda name=name: told.setdefault(name, True))
        optimizer._reassign_or_swap_out_partitioned_parameters = lambda group: told.setdefault(group, True)
        self.told = told
        for holder, group in zip(holders, groups, strict=True) if self.stage in "12" else ():
            size = len(holder)
            link_hp_params(group, holder, {}, {}, False, 0, self.rank * size, size, None)
        return optimizer

    def wrong(self, whole: dict[tuple[str, str], Tensor]) -> list[str]:
        """What the rank holds that is not as in `whole`; padding is nobody's."""
        self.whole = whole
        expected = {kind: [tensor.clone() for tensor in self.held(kind)] for kind in KINDS}
        found = {kind: [self.basic.state.get(holder, {}).get(kind, holder) for holder in self.own] for kind in KINDS}
        pairs = [(kind, *pair) for kind in KINDS for pair in zip(found[kind], expected[kind], strict=True)]
        for (name, parameter), (_, _, mean) in zip(self.named.items(), self.average.held(), strict=True):
            in_shards = self.stage == "3"
            average = whole["average", name]
            pairs.append(("average", mean, self.cut(padded(average, self.ranks)) if in_shards else average))
            if not parameter.requires_grad:
                frozen = whole["weight", name]
                held = parameter.ds_tensor if in_shards else parameter
                pairs.append(("frozen", held, self.cut(padded(frozen, self.ranks)) if in_shards else frozen))
        return [kind for kind, a, b in pairs if not torch.equal(a[~b.isnan()], b[~b.isnan()])]


LAYOUTS = [
    ("3", 1),
    ("3", 2),
    ("3", 3),
    ("3", 7),
    ("2", 1),
    ("2", 2),
    ("2", 5),
    ("1", 3),
    ("0", 2),
    ("0 in bfloat16", 2),
]


@pytest.mark.parametrize("before", LAYOUTS, ids=str)
def test_from_any_layout_to_any_other(before: tuple[str, int], tmp_path: Path) -> None:
    saved, other = values(1), values(2)
    stage, ranks = before
    for rank in range(ranks):
        one = Rank(stage, ranks, rank, saved, step=5)
        scale_rates(one.schedule, 0.25)
        one.schedule.last_epoch = 3
        assert min(one.state.saving(tmp_path, "state")()) == f"state/rank-{rank:05d}.safetensors"
    assert len(list((tmp_path / "state").iterdir())) == ranks + 1, "one file a rank, and the schedule"
    for stage, ranks in LAYOUTS:
        for rank in range(ranks):
            one = Rank(stage, ranks, rank, other, step=0)
            one.state.load(tmp_path / "state")
            assert one.wrong(saved) == []
            assert {int(state["step"]) for state in one.basic.state.values()} == {5}
            assert all(state["step"].dtype == torch.float32 for state in one.basic.state.values())
            renew_rates(one.schedule, 2e-3)
            assert [group["lr"] for group in one.basic.param_groups] == pytest.approx([2e-3 / 4 / (1 + 3)] * 2)


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    Rank("3", 1, 0, values(1), step=0).state.saving(tmp_path, ".")()
    one = Rank("2", 1, 0, values(2), step=0)
    one.state.load(tmp_path)
    assert not one.basic.state and one.told == {"update_lp_params": True}
    assert torch.equal(one.own[0][:52], values(1)["weight", "embed"].flatten())


def test_weights_are_rounded_anew_after_loading(tmp_path: Path) -> None:
    Rank("3", 1, 0, values(1), step=1).state.saving(tmp_path, ".")()
    one = Rank("3", 2, 1, values(2), step=0)
    one.state.load(tmp_path)
    assert list(one.told) == ["checkpoint_event_prologue", 0, 1, "checkpoint_event_epilogue"]
    one = Rank("0 in bfloat16", 1, 0, values(2), step=0)
    one.state.load(tmp_path)
    assert torch.equal(one.named["norm"], values(1)["weight", "norm"])


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    one = Rank("3", 1, 0, values(1), step=1)
    one.state.saving(tmp_path, ".")()
    other = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(other.parameters())
    engine = SimpleNamespace(basic_optimizer=optimizer, optimizer=optimizer)
    with pytest.raises(RoleError, match=r"holds 0 of the 4 numbers of weight \(weight\)"):
        HeldState(engine, other, None, 0, with_frozen=True).load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": {}, "initial": 1}', '{"state": {}, "initial": ["x"]}'])
def test_a_schedule_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    Rank("3", 1, 0, values(1), step=1).state.saving(tmp_path, ".")()
    (tmp_path / "schedule.json").write_text(text)
    with pytest.raises(RoleError, match=r"schedule\.json is no file of a checkpoint"):
        Rank("3", 1, 0, values(1), step=0).state.load(tmp_path)


def test_a_state_without_a_mean_is_refused_by_a_run_that_keeps_one(tmp_path: Path) -> None:
    one = Rank("3", 1, 0, values(1), step=1)
    HeldState(one.state.engine, one.module, None, 0, with_frozen=True).saving(tmp_path, ".")()
    with pytest.raises(RoleError, match="written without ema_decay"):
        Rank("3", 1, 0, values(1), step=0).state.load(tmp_path)


@pytest.mark.parametrize("stage", ["3", "2", "1", "0"])
def test_a_copy_is_written_as_it_was_when_it_was_taken(tmp_path: Path, stage: str) -> None:
    one = Rank(stage, 1, 0, values(1), step=5)
    at_once = one.state.saving(tmp_path, "at-once")()
    later = one.state.saving(tmp_path, "later", copied=True)
    with torch.no_grad():
        for tensor in [*one.own, *(tensor for state in one.basic.state.values() for tensor in state.values())]:
            tensor.add_(1)
    for _, _, mean in one.average.held():
        mean.add_(1)
    scale_rates(one.schedule, 0.5)
    written = later()
    assert [found for _, found in sorted(written.items())] == [found for _, found in sorted(at_once.items())]
    assert one.state.saving(tmp_path, "afterwards")().values() != at_once.values()
    for file in (tmp_path / "at-once").iterdir():
        assert file.read_bytes() == (tmp_path / "later" / file.name).read_bytes()
