"""A trainer of the engine tests: a Llama under DeepSpeed ZeRO-3, perhaps with adapters, that is shaken instead of
trained, and pushed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from roles.config.models import LoraConfig
from roles.models.lora import adapt
from roles.transfer.probe import Products
from roles.transfer.push import WeightPusher
from tests.integration.hosted import HostClient


class Trainer:
    """One rank. `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` come from the environment."""

    def __init__(self, model_path: str, addresses: list[str], lora: LoraConfig | None = None) -> None:
        from transformers import AutoModelForCausalLM

        from roles.zero.process_group import join

        deepspeed = join("cpu")
        self.rank = int(os.environ["RANK"])
        self.plain = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        module = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        if lora:
            adapt(self.plain, lora)
            adapt(module, lora)
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        self.engine, *_ = deepspeed.initialize(model=module, config=config)
        self.module = module
        self.client = HostClient(addresses)

    def connect(self) -> None:
        self.pusher = WeightPusher(self.module, self.client, rank=self.rank, timeout_s=60)

    def sharded(self) -> bool:
        """Whether this rank keeps less than the whole of each parameter."""
        return all(p.numel() == 0 for p in self.module.parameters())

    def shake(self, seed: int) -> None:
        """Add the same noise to the sharded and the plain parameters."""
        import deepspeed

        generator = torch.Generator().manual_seed(seed)
        for mine, plain in zip(self.module.parameters(), self.plain.parameters(), strict=True):
            noise = 0.05 * torch.randn(plain.shape, generator=generator)
            with torch.no_grad(), deepspeed.zero.GatheredParameters([mine], modifier_rank=0):
                if self.rank == 0:
                    mine.add_(noise)
            plain.data.add_(noise)

    def push(self, version: int) -> float:
        began = time.perf_counter()
        self.pusher.push(version)
        return time.perf_counter() - began

    def push_spoiled(self, version: int) -> None:
        """As `push`, but one number changes on its way: after it was counted into the digest, before it is sent."""
        trainer = self.pusher._trainer
        source = trainer._weights

        class Spoiled:
            metadata = source.metadata

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                for name, tensor in source:
                    spoiled = tensor.clone()
                    if name.endswith("layers.1.mlp.up_proj.weight"):
                        spoiled[3, 5] += 0.5
                    yield name, spoiled

        trainer._weights = Spoiled()
        try:
            self.pusher.push(version)
        finally:
            trainer._weights = source

    def products(self) -> Products:
        """What tells these weights from an engine's."""
        return self.pusher.products()

    def logprobs(self, token_ids: Tensor, lengths: Tensor, temperature: float) -> Tensor:
        """float32 `[batch, time]` by the plain model, row by row without padding; position 0 is 0."""
        out = torch.zeros(token_ids.shape)
        with torch.no_grad():
            for row, length in enumerate(lengths.tolist()):
                logits = self.plain(token_ids[None, row, :length]).logits[0, :-1] / temperature
                picked = logits.log_softmax(-1).gather(1, token_ids[row, 1:length, None])
                out[row, 1:length] = picked[:, 0]
        return out
