"""A model that DeepSpeed shards over the ranks of a group: build, forward, backward, step, gather, save.

A module flows in; each rank of the group holds its share of it. The roles give lists of sequence lengths and a
function that computes one micro-batch. The model decides how many micro-batches every rank runs, accumulates, reduces
and steps. A rank's place in the group comes from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roles.errors import Diverged, LossNotFinite, RoleError
from roles.models.fused_kernels import prepare_for_card
from roles.models.lora import adapt, state_name
from roles.models.recomputing import recompute
from roles.packing import micro_batches
from roles.spans import span
from roles.zero.average import Average
from roles.zero.digest import Digest
from roles.zero.gather import full_parameters, layers, parameter_shapes
from roles.zero.host_heap import HEAP
from roles.zero.model_folder import write_folder
from roles.zero.optimizer import make_optimizer, make_scheduler, rate_factor, renew_rates, scale_rates
from roles.zero.process_group import join
from roles.zero.settings import deepspeed_config, gather_by_layer
from roles.zero.setup import ModelSetup
from roles.zero.sleeping import sleep, wake
from roles.zero.state_thread import StateThread
from roles.zero.work import StepFacts, Term


class ShardedModel:
    """One rank's part of a module under ZeRO."""

    def __init__(self, setup: ModelSetup, load: Callable[[], nn.Module]) -> None:
        """`load` makes the module, with the transformers model as its `.model`; it runs after the ranks have joined."""
        self.setup, config = setup, setup.optimizer
        deepspeed = join(setup.device)
        from roles.zero.held_state import HeldState

        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = torch.device("cpu" if setup.device == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}")
        settings = deepspeed_config(setup, self.world_size)
        with _sharded_loading(setup, settings):
            module = load()
        self.module: Any = module.requires_grad_(config is not None)
        transformer: Any = module.model
        if setup.device == "cuda":
            prepare_for_card(module, setup.torch_dtype, fused=setup.fused_kernels, trained=config is not None)
        if setup.freeze_backbone:
            transformer.base_model.requires_grad_(False)
        if setup.lora:
            adapt(transformer, setup.lora, setup.seed)
        if setup.zero.stage == 3:
            gather_by_layer(module)
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(config, module, setup.zero) if config else None,
            lr_scheduler=make_scheduler(config.schedule, setup.optimizer_steps) if config else None,
            config=settings,
        )
        self._deepspeed.eval()
        self._average = Average(transformer, setup.ema_decay, self.device) if setup.ema_decay else None
        whole = setup.lora is None  # otherwise frozen weights are those of the model's folder
        self._thread = StateThread()
        self._state = HeldState(self._deepspeed, module, self._average, self.rank, with_frozen=whole)
        if setup.zero.sleep:
            sleep(self._deepspeed)
        self.give_back()

    def __call__(self, **inputs: Any) -> Any:
        """The module's forward pass. A collective: every rank must run the same number of passes."""
        return self._deepspeed(**inputs)

    def passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Micro-batches of items for passes without gradient: the same number on every rank, some perhaps empty.

        After the last one the memory that the passes took is given back.
        """
        own = len(micro_batches(lengths, self.setup.micro_batch_tokens))
        needed = int(self._every_rank(torch.tensor([own])).max())
        for items in micro_batches(lengths, self.setup.micro_batch_tokens, at_least=needed):
            with span("forward", items=len(items)):
                yield items
        if self.setup.zero.stage == 3:
            # On a GPU ZeRO-3 has begun to gather weights for a backward pass, which does not come.
            self._deepspeed.optimizer.empty_partition_cache()
        self.give_back()

    def give_back(self) -> None:
        """Return free host memory to the system, and torch's reserve to other processes on the same card."""
        if self.device.type == "cpu":
            HEAP.give_back()
        elif self.setup.shares_card:
            torch.cuda.empty_cache()

    def train(self, *terms: Term) -> list[StepFacts]:
        """Take optimizer steps, each on the sum of the terms' means. LossNotFinite if a loss is not finite."""
        tokens = self.setup.micro_batch_tokens
        own = [[(len(micro_batches(w.lengths, tokens)), w.denominator) for w in term.work] for term in terms]
        everyone = self._every_rank(torch.tensor(own, dtype=torch.float64).reshape(len(terms), -1, 2))
        recompute(self.module, self.setup.gradient_checkpointing)
        facts = []
        with self._awake():
            for step in range(len(terms[0].work)):
                passes: list[tuple[int, list[int], float]] = []
                for number, term in enumerate(terms):
                    counts, denominators = everyone[:, number, step].unbind(1)
                    # DeepSpeed averages over ranks; we need the sum.
                    scale = term.coefficient * self.world_size / max(float(denominators.sum()), 1.0)
                    bins = micro_batches(term.work[step].lengths, tokens, at_least=max(int(counts.max()), 1))
                    passes += [(number, items, scale) for items in bins]
                losses = []
                for place, (number, items, scale) in enumerate(passes, start=1):
                    self._deepspeed.set_gradient_accumulation_boundary(place == len(passes))
                    with span("forward", items=len(items)):
                        summed = terms[number].loss(step, items)
                    losses.append(summed.detach())
                    with span("backward", items=len(items)):
                        self._deepspeed.backward(summed * scale)
                finite = torch.stack(losses).isfinite().tolist()  # the only wait for the GPU in this method
                if not all(finite):
                    number, items, _ = passes[finite.index(False)]
                    raise LossNotFinite(step, items, number)
                with span("optimizer step"):
                    facts.append(self._step())
                if self._average:
                    self._average.update()
        recompute(self.module, False)
        return facts

    def expect(self, optimizer_steps: int) -> None:
        """Let the schedule end after `optimizer_steps` steps, including those already taken."""
        assert self.setup.optimizer is not None
        scheduler = self._deepspeed.lr_scheduler
        factor = partial(rate_factor, self.setup.optimizer.schedule, total=optimizer_steps)
        scheduler.lr_lambdas = [factor for _ in scheduler.lr_lambdas]

    def slow_down(self, factor: float) -> None:
        """Multiply the learning rate, for the rest of the schedule; checkpoints keep the factor."""
        scale_rates(self._deepspeed.lr_scheduler, factor)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` (any shape) over the ranks, on the CPU."""
        return self._every_rank(values).sum(0)

    def save_state(self, folder: str | Path, *, behind: bool = False) -> dict[str, str]:
        """Save trained weights in full precision, optimizer and schedule. Returns path in `folder` → hash of the files
        that this rank has written; they are on the disk. `behind`: only copy all that to host memory, for a thread that
        writes it; `written` tells the hashes."""
        with self._awake():
            write = self._state.saving(Path(folder), self._state_name, copied=behind)
            if not behind:
                return write()
        self._thread.begin(write)
        return {}

    def written(self) -> dict[str, str] | None:
        """The hashes of what `save_state` has left to the thread; None before all is on the disk. Raises its error."""
        return self._thread.answer()

    def load_state(self, folder: str | Path) -> None:
        """Continue where ranks of any number and any ZeRO stage have called `save_state`, with the learning rate and
        schedule of this setup; exactly there, if number and stage are the same."""
        assert self.setup.optimizer is not None
        torch.distributed.barrier()  # every rank has written its files
        if not (Path(folder) / self._state_name).is_dir():
            raise RoleError(
                f"{folder} holds no {self._state_name}; resume from a whole checkpoint, with `lora` as it was written "
                "with"
            )
        with self._awake():
            self._state.load(Path(folder) / self._state_name)
            renew_rates(self._deepspeed.lr_scheduler, self.setup.optimizer.learning_rate)

    def save_average(self, folder: str | Path) -> None:
        """Save the running mean of the weights as `save_model` saves the weights."""
        assert self._average is not None, "only where ema_decay is set"
        self._save(folder, self._average.whole())

    def save_model(self, folder: str | Path) -> None:
        """Save a Hugging Face folder: whole weights (safetensors), configuration and tokenizer, written by rank 0."""
        self._save(folder, self._full_parameters(self.module.model))

    def _save(self, folder: str | Path, whole: Iterator[tuple[str, Tensor]]) -> None:
        model = self.module.model
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in whole if self.rank == 0}
        if self.rank == 0:
            write_folder(model, weights, Path(folder), self.setup)
        torch.distributed.barrier()
        self.give_back()

    def fingerprint(self, *, adapted: bool = True) -> str:
        """A hash of all weights, the same for any number of ranks; `adapted=False`: as they are without adapters."""
        digest = Digest()
        for name, tensor in self._full_parameters(self.module, adapted):
            if self.rank == 0:
                digest.add(name, tensor)
        answer = [digest.hexdigest()]
        torch.distributed.broadcast_object_list(answer, src=0, device=self.device)
        self.give_back()
        return answer[0]

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Context in which gradients and optimizer state are on the card; afterwards they are on the host, if they
        sleep.

        The rest of the card's memory that is free by then is given back.
        """
        if self.setup.zero.sleep:
            with span("wake"):
                wake(self._deepspeed, self.device)
        yield
        if self.setup.zero.sleep:
            with span("sleep"):
                sleep(self._deepspeed)
        self.give_back()

    @property
    def _state_name(self) -> str:
        return state_name(self.setup.lora)

    def _full_parameters(self, module: nn.Module, adapted: bool = True) -> Any:
        groups = layers([name for name, _ in parameter_shapes(module)])
        return full_parameters(module, groups, adapted=adapted)

    def _step(self) -> StepFacts:
        rate = float(self._deepspeed.get_lr()[0])
        if self._deepspeed.optimizer is self._deepspeed.basic_optimizer:
            norm = self._checked(self._plain_norm(), rate)
            self._deepspeed.step()
        else:
            self._deepspeed.step()  # does not change the weights if the norm is not finite
            norm = self._checked(float(self._deepspeed.get_global_grad_norm()), rate)
        return StepFacts(gradient_norm=norm, learning_rate=rate)

    def _checked(self, norm: float, rate: float) -> float:
        if not math.isfinite(norm) or norm < 0:
            raise Diverged(
                f"a gradient is not finite, and the weights stay as they were; lower optimizer.learning_rate (now "
                f"{rate:g}), or look for scores and advantages in this step that are not finite"
            )
        return norm

    def _plain_norm(self) -> float:
        """Gradient norm of stage 0 in float32, where DeepSpeed clips with torch's function and keeps no norm."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _every_rank(self, values: Tensor) -> Tensor:
        """Gather `values` of every rank: `[ranks, …]`. One small collective."""
        if self.world_size == 1:
            return values.detach().cpu()[None]
        mine = values.detach().to(self.device)
        answers = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(answers, mine)
        return torch.stack(answers).cpu()


def _sharded_loading(setup: ModelSetup, settings: dict[str, Any]) -> AbstractContextManager[Any]:
    """Context for loading a model: with ZeRO-3 on GPUs transformers shards each weight as it loads it, so that no
    rank holds the whole model."""
    if setup.zero.stage != 3 or setup.device == "cpu":
        return nullcontext()
    from transformers.integrations import HfDeepSpeedConfig

    return nullcontext(HfDeepSpeedConfig(settings))  # transformers sees it while it exists
