"""Peak memory and seconds of scoring 8192 tokens over a vocabulary of 131072, forward and backward.

A randomly initialised Llama of one layer and hidden size 256 gives log-probabilities and entropy of one long sequence,
with gradients of both: once with whole logits (as architectures that change them after the head still have them), once
in blocks of the vocabulary (`roles.models.scoring_head`). Each case has a process of its own; the peak is that of its
resident memory, less what it had before the forward pass.

    .venv/bin/python tests/benchmarks/long_context.py [--tokens 8192] [--vocabulary 131072]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from multiprocessing.queues import Queue

import psutil
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from roles.models.attention import IMPLEMENTATION
from roles.models.networks import PolicyModel
from roles.packing import pack

HIDDEN = 256
WAYS = ("whole", "blocks")


def policy(vocabulary: int, tokens: int, dtype: torch.dtype, way: str) -> PolicyModel:
    """The model, its head as `way` says."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokens,
        tie_word_embeddings=True,
        attn_implementation=IMPLEMENTATION,
    )
    torch.manual_seed(0)
    model = PolicyModel(LlamaForCausalLM(config).to(dtype))
    if way == "whole":
        head = nn.Linear(1, 1, bias=False)
        head.weight = model.model.get_input_embeddings().weight
        model.model.set_output_embeddings(head)
        model.scores_in_blocks = False
    return model


def measure(answer: Queue[tuple[float, ...]], tokens: int, vocabulary: int, dtype: str, way: str) -> None:
    """GiB and seconds of a scoring pass, and of one with gradients."""
    torch.set_num_threads(2)
    model = policy(vocabulary, tokens, getattr(torch, dtype), way)
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    packed, positions = pack(ids, torch.tensor([tokens])), torch.arange(tokens - 1)
    before = psutil.Process().memory_info().rss
    figures = []
    for training in (False, True):
        began = time.perf_counter()
        with torch.set_grad_enabled(training):
            logprobs, entropy = model(
                packed=packed, positions=positions, labels=ids[0, 1:], temperature=0.9, with_entropy=training
            )
        if training:
            (logprobs.mean() + 0.01 * entropy.mean()).backward()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        figures += [(peak - before) / 2**30, time.perf_counter() - began]
    answer.put(tuple(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=131072)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{'dtype':>9} {'logits':>7} {'score GiB':>10} {'s':>6} {'update GiB':>11} {'s':>6}")
    for dtype in ("float32", "bfloat16"):
        for way in WAYS:
            answer: Queue[tuple[float, ...]] = context.Queue()
            case = context.Process(target=measure, args=(answer, arguments.tokens, arguments.vocabulary, dtype, way))
            case.start()
            case.join()
            if case.exitcode:
                print(f"{dtype:>9} {way:>7} ended with {case.exitcode}")
                continue
            scoring, score_s, update, update_s = answer.get()
            print(f"{dtype:>9} {way:>7} {scoring:10.2f} {score_s:6.1f} {update:11.2f} {update_s:6.1f}", flush=True)


if __name__ == "__main__":
    main()
