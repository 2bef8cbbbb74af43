"""DeepSpeed and vLLM in one process: a few lines of torch, and an engine whose responses are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.v1.engine.output_processor import OutputProcessor

from tests.unit.wiring.tiny import ENDS, VOCABULARY


class PlainDeepSpeed:
    """What `ShardedModel` asks of DeepSpeed, for one rank."""

    def __init__(self, *, model: nn.Module, optimizer: Any, lr_scheduler: Any, config: dict[str, Any]) -> None:
        self.module, self.settings = model, config
        self.optimizer = self.basic_optimizer = optimizer
        self.lr_scheduler = lr_scheduler(optimizer) if optimizer else None

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def eval(self) -> None:
        self.module.eval()

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self) -> None:
        assert self.lr_scheduler is not None
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings["gradient_clipping"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()

    @classmethod
    def initialize(cls, **arguments: Any) -> tuple[Any, ...]:
        return cls(**arguments), None, None, None


@dataclass
class Answer:
    """One request to vLLM, and what came back."""

    prompt: list[int]
    params: Any
    tokens: list[int]
    logprobs: list[float]
    ended: bool


class FakeLLM:
    """vLLM's engine: its answers are drawn from a generator of their own, whatever the seeds."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.output_processor = OutputProcessor(cast(Any, "a tokenizer"), log_stats=False)
        self.batches: list[list[Answer]] = []
        self._open: dict[str, Answer] = {}

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        if not self._open:
            self.batches.append([])
        batch = self.batches[-1]
        source = torch.Generator().manual_seed(1000 * len(self.batches) + len(batch))
        length = min(max(2 + (3 * len(batch) + len(self.batches)) % 4, params.min_tokens), params.max_tokens)
        tokens = torch.randint(ENDS + 1, VOCABULARY, (length,), generator=source).tolist()
        ended = length > params.min_tokens and not self.cuts(prompt["prompt_token_ids"], len(batch))
        if ended:
            tokens[-1] = ENDS
        logprobs = (-3.5 + 0.6 * torch.randn(length, generator=source)).tolist()
        batch.append(Answer(prompt["prompt_token_ids"], params, tokens, logprobs, ended))
        self._open[name] = batch[-1]

    @staticmethod
    def cuts(prompt: list[int], place: int) -> bool:
        """Whether the length limit cuts the answer to `prompt`, the request number `place` of its batch."""
        return place % 3 == 2

    def step(self) -> list[Any]:
        done, self._open = self._open, {}
        return [
            SimpleNamespace(
                request_id=name,
                prompt_token_ids=answer.prompt,
                num_cached_tokens=0,
                outputs=[
                    SimpleNamespace(
                        finish_reason="stop" if answer.ended else "length",
                        token_ids=answer.tokens,
                        logprobs=SimpleNamespace(
                            logprobs=answer.logprobs, start_indices=list(range(len(answer.logprobs)))
                        ),
                    )
                ],
            )
            for name, answer in done.items()
        ]

    def has_unfinished_requests(self) -> bool:
        return bool(self._open)
