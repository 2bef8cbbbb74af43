"""What a rank holds of the training state, by the names of the parameters, whatever ZeRO stage and number of ranks:
DeepSpeed's engine flows in, parts of parameters flow out, and back in.

DeepSpeed flattens parameters into long tensors, pads them, and gives each rank a piece. A `Place` says which numbers
of which parameter are where in them; padding has no place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from roles.durable import write_durably
from roles.errors import RoleError
from roles.zero.average import Average
from roles.zero.part_files import WEIGHT, PartFiles, PartName, write_parts

STEP, AVERAGE = "step", "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's states of the parameter's shape, by their keys in the optimizer."""
SCHEDULE = "schedule.json"
"""File with the state of the learning rate's schedule."""


@dataclass(frozen=True, slots=True)
class Place:
    """Consecutive numbers of a flattened parameter, and where this rank holds them."""

    name: str
    start: int
    """Place of the first in the parameter."""
    count: int
    holder: Tensor
    """A tensor that holds them, perhaps among others; the optimizer's states of this tensor have its shape."""
    offset: int = 0
    """Place of the first in `holder`."""
    everywhere: bool = False
    """Whether every rank holds the same numbers."""

    def of(self, tensor: Tensor) -> Tensor:
        """The numbers in a tensor of the holder's shape: a view, `[count]`."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.count)


def own_place(name: str, parameter: Any, rank: int) -> Place:
    """Where this rank holds a parameter of the module itself: its shard in stage 3, otherwise all of it."""
    if not hasattr(parameter, "ds_tensor"):
        return Place(name, 0, parameter.numel(), parameter, everywhere=True)
    size = parameter.ds_tensor.ds_numel
    start = rank * size
    return Place(name, start, max(0, min(size, parameter.ds_numel - start)), parameter.ds_tensor)


def trained_places(optimizer: Any, names: dict[int, str], rank: int) -> Iterator[Place]:
    """Where `optimizer` (DeepSpeed's, or torch's where DeepSpeed has none) holds the trained weights, in full
    precision.

    Args:
        names: name of each parameter by its `id`.
    """
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            for flat, group in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
                offset = 0
                for parameter in group:
                    yield replace(own_place(names[id(parameter)], parameter, rank), holder=flat, offset=offset)
                    offset += parameter.ds_tensor.ds_numel
        case DeepSpeedZeroOptimizer():
            yield from _linked(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, names)
        case BF16_Optimizer():
            yield from _linked(optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, names)
        case FP16_UnfusedOptimizer():
            for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                for parameter, master in zip(group, masters, strict=True):
                    yield replace(own_place(names[id(parameter)], parameter, rank), holder=master)
        case _:
            for group in optimizer.param_groups:
                yield from (own_place(names[id(parameter)], parameter, rank) for parameter in group["params"])


def _linked(flats: list[Tensor], groups: list[list[Any]], names: dict[int, str]) -> Iterator[Place]:
    """Places in the flat tensors of stages 1 and 2, by DeepSpeed's own links from a parameter into its group's."""
    for flat, group in zip(flats, groups, strict=True):
        for parameter in group:
            link = parameter._hp_mapping  # None: another rank holds it
            if link is not None:
                here, there = link.lp_fragment_address, link.hp_fragment_address
                yield Place(names[id(parameter)], here.start, here.numel, flat, there.start)


@dataclass(frozen=True, slots=True)
class HeldState:
    """The training state that this rank holds: trained weights in full precision, moments, schedule, means."""

    engine: Any
    """DeepSpeed's engine."""
    module: nn.Module
    average: Average | None
    rank: int
    with_frozen: bool
    """Whether frozen weights belong to it."""

    def saving(self, folder: Path, name: str, *, copied: bool = False) -> Callable[[], dict[str, str]]:
        """What writes this rank's files in `folder/name`, and returns path in `folder` → hash. `copied`: it writes the
        state of now from a copy in host memory, whatever has changed by then."""
        parts, schedule = self.parts(), json.dumps(self._schedule()).encode()
        if copied:
            parts = {part: numbers.to("cpu", copy=True) for part, numbers in parts.items()}

        def write() -> dict[str, str]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            file = f"{name}/rank-{self.rank:05d}.safetensors"
            written = {file: write_parts(folder / file, parts)}
            if self.rank == 0:
                file = f"{name}/{SCHEDULE}"
                written[file] = write_durably(folder / file, lambda opened: opened.write(schedule))
            return written

        return write

    def parts(self) -> dict[PartName, Tensor]:
        """All numbers that this rank has to write: views."""
        states, found = self.engine.basic_optimizer.state, {}
        for place in self._mine(self._trained()):
            found[PartName(WEIGHT, place.start, place.name)] = place.of(place.holder)
            state = states.get(place.holder, {})
            if STEP in state:
                found[PartName(STEP, place.start, place.name)] = torch.tensor([int(state[STEP])])
                found |= {PartName(key, place.start, place.name): place.of(state[key]) for key in MOMENTS}
        for place in self._mine(self._frozen()):
            found[PartName(WEIGHT, place.start, place.name)] = place.of(place.holder)
        for place in self._mine(self._means()):
            found[PartName(AVERAGE, place.start, place.name)] = place.of(place.holder)
        return found

    def load(self, folder: Path) -> None:
        """Read what ranks of any number and stage have saved. A collective in stage 3."""
        optimizer, files = self.engine.optimizer, PartFiles(folder)
        in_shards = isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)
        if in_shards:
            optimizer.checkpoint_event_prologue()  # no weight is whole while its shards change
        for place in self._trained():
            files.read(WEIGHT, place.name, place.start, place.of(place.holder))
            self._load_moments(files, place)
        for place in self._frozen():
            files.read(WEIGHT, place.name, place.start, place.of(place.holder))
        _round(optimizer)
        if in_shards:
            optimizer.checkpoint_event_epilogue()
        for place in self._means():
            if files.first(AVERAGE, place.name) is None:
                raise RoleError(f"{folder} was written without ema_decay; resume without it")
            files.read(AVERAGE, place.name, place.start, place.of(place.holder))
        self._load_schedule(folder / SCHEDULE)

    def _load_moments(self, files: PartFiles, place: Place) -> None:
        optimizer, step = self.engine.basic_optimizer, files.first(STEP, place.name)
        if step is None:  # no optimizer step has changed it
            return
        state, in_tensor = optimizer.state[place.holder], isinstance(optimizer, torch.optim.AdamW)
        state[STEP] = torch.tensor(step, dtype=torch.float32, device=place.holder.device) if in_tensor else int(step)
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(place.holder, requires_grad=False)
            files.read(key, place.name, place.start, place.of(state[key]))

    def _schedule(self) -> dict[str, Any]:
        scheduler = self.engine.lr_scheduler
        state = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
        return {"state": state, "initial": [group["initial_lr"] for group in scheduler.optimizer.param_groups]}

    def _load_schedule(self, file: Path) -> None:
        scheduler = self.engine.lr_scheduler
        try:
            written = json.loads(file.read_text(encoding="utf-8"))
            scheduler.load_state_dict({**written["state"], "lr_lambdas": [None] * len(scheduler.lr_lambdas)})
            for group, rate in zip(scheduler.optimizer.param_groups, written["initial"], strict=True):
                group["initial_lr"] = float(rate)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise RoleError(f"{file} is no file of a checkpoint ({type(error).__name__}: {error})") from error

    def _trained(self) -> Iterator[Place]:
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        places = trained_places(self.engine.optimizer, names, self.rank)
        return (place for place in places if place.count)

    def _frozen(self) -> Iterator[Place]:
        frozen = ((n, p) for n, p in self.module.named_parameters() if self.with_frozen and not p.requires_grad)
        return (place for name, parameter in frozen if (place := own_place(name, parameter, self.rank)).count)

    def _means(self) -> Iterator[Place]:
        held = self.average.held() if self.average else ()
        places = (replace(own_place(name, parameter, self.rank), holder=mean) for name, parameter, mean in held)
        return (place for place in places if place.count)

    def _mine(self, places: Iterator[Place]) -> Iterator[Place]:
        """Those that this rank writes: what every rank holds is written once."""
        return (place for place in places if self.rank == 0 or not place.everywhere)


def _round(optimizer: Any) -> None:
    """Give the module the trained weights in its own dtype, as after an optimizer step."""
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
        case DeepSpeedZeroOptimizer() | BF16_Optimizer():
            optimizer.update_lp_params()
        case FP16_UnfusedOptimizer():
            for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                for parameter, master in zip(parameters, masters, strict=True):
                    parameter.data.copy_(master.data)
