"""Seconds that an engine generates: continuous batching over responses of different lengths. Pure.

An engine takes requests while the KV cache has room for them. Every iteration gives each of them one token. A response
that ends makes room for the next. The batch therefore shrinks towards the end, and all wait for the longest response.
Between two such events an iteration grows only with the tokens in the cache, so all iterations between them are summed
at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.model_size import ModelSize
from cluster.estimate.roofline import Rates, Workload, operations

SEED = 1
"""Seed of the random order of lengths."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response to be generated."""

    prompt: int
    """Number of its prompt; consecutive requests with the same prompt share its KV cache."""
    tokens: float
    """Tokens of the complete response."""


@dataclass(frozen=True, slots=True)
class GenerationPace:
    """Seconds that an engine needs for the parts of an iteration."""

    weights_s: float
    """Seconds to read all weights once."""
    sequence_s: float
    """Seconds of arithmetic for one sequence."""
    summed_s: float
    """Seconds of reductions over the tensor-parallel group for one sequence."""
    overhead_s: float
    """Seconds of scheduler, sampler and latency of collectives, whatever the batch."""
    launch_s: float
    """Least seconds to launch the kernels: without CUDA graphs the host may be slower than the card."""
    cached_s: float
    """Seconds to read the keys and values of one token."""
    prefill_s: float
    """Seconds to process a prompt."""
    mixture: ModelSize | None = None
    """For a mixture of experts: its sizes, because a batch reads only the experts that its tokens are sent to."""

    def iteration_s(self, batch: int) -> float:
        """Seconds of one iteration, without reading the KV cache (a separate kernel, during which nothing else
        runs)."""
        read = self.mixture.read_parameters(batch) / self.mixture.parameters if self.mixture else 1.0
        products = max(self.weights_s * read, batch * self.sequence_s) + batch * self.summed_s
        return max(products, self.launch_s) + self.overhead_s


def pace(engine: EngineSize, work: Workload, rates: Rates) -> GenerationPace:
    """The pace of one engine."""
    model, parallel = engine.model, engine.parallel
    # Two reductions over the tensor-parallel group per layer; a ring sends almost every number twice.
    summed = 4 * model.layers * model.hidden * engine.number_bytes * (parallel - 1) / parallel
    latency = 2 * model.layers * rates.collective_s if parallel > 1 else 0.0
    return GenerationPace(
        weights_s=engine.weights / rates.memory,
        sequence_s=operations(model, 1, 1) / parallel / rates.compute,
        summed_s=summed / rates.link,
        overhead_s=rates.token_overhead_s + latency,
        launch_s=model.layers * rates.layer_s if engine.eager else 0.0,
        cached_s=engine.kv_of_a_sample / engine.longest / rates.memory,
        prefill_s=operations(model, work.prompt_tokens, 0) / parallel / rates.compute,
        mixture=model if model.sparse_layers else None,
    )


@lru_cache(maxsize=64)
def shares(engine: EngineSize, work: Workload, seed: int = SEED) -> list[list[Request]]:
    """The requests of each engine: consecutive rows, numbers differing by at most one."""
    drawn = work.lengths.draw(work.samples, seed)
    requests = [Request(row // work.responses_per_prompt, tokens) for row, tokens in enumerate(drawn)]
    ends = [work.samples * number // engine.number for number in range(engine.number + 1)]
    return [requests[first:last] for first, last in pairwise(ends)]


def finish_times(
    pace: GenerationPace, requests: Sequence[Request], prompt_tokens: float, *, room: float, max_sequences: int
) -> list[float]:
    """Seconds after which each response is whole, in the order of the requests, which is that in which they are taken.

    Args:
        room: tokens that the KV cache holds. A request is taken when all that it will hold has a place (vLLM takes it
            earlier, and computes it anew if the room then is not enough); one alone is always taken.
    """
    done = [0.0] * len(requests)
    running: list[tuple[float, int]] = []  # (iteration at which it ends, index of the request)
    sharing: dict[int, int] = {}  # prompt → number of its responses that are running
    read: set[int] = set()
    seconds = iteration = cached = held = 0.0
    following = 0
    while following < len(requests) or running:
        while following < len(requests) and len(running) < max_sequences:
            request = requests[following]
            more = request.tokens + (0.0 if sharing.get(request.prompt) else prompt_tokens)
            if running and held + more > room:
                break
            if request.prompt not in read:
                read.add(request.prompt)
                seconds += pace.prefill_s
            sharing[request.prompt] = sharing.get(request.prompt, 0) + 1
            heapq.heappush(running, (iteration + request.tokens, following))
            held += more
            cached += prompt_tokens
            following += 1
        batch, (end, _) = len(running), running[0]
        passed = end - iteration
        seconds += passed * pace.iteration_s(batch) + pace.cached_s * passed * (cached + batch * passed / 2)
        cached += batch * passed
        iteration = end
        while running and running[0][0] <= iteration:
            _, number = heapq.heappop(running)
            request = requests[number]
            done[number] = seconds
            sharing[request.prompt] -= 1
            cached -= prompt_tokens + request.tokens
            held -= request.tokens + (0.0 if sharing[request.prompt] else prompt_tokens)
    return done


@lru_cache(maxsize=512)
def finished(engine: EngineSize, work: Workload, rates: Rates, room: float, seed: int = SEED) -> list[list[float]]:
    """Per engine, the second at which each response is complete. `room`: bytes of KV cache on each of its GPUs."""
    kv_of_a_token = engine.kv_of_a_sample / engine.longest
    speed = pace(engine, work, rates)
    return [
        finish_times(
            speed,
            requests,
            work.prompt_tokens,
            room=room / kv_of_a_token,
            max_sequences=engine.max_sequences,
        )
        for requests in shares(engine, work, seed)
    ]


def generate_s(engine: EngineSize, work: Workload, rates: Rates, room: float, seed: int = SEED) -> float:
    """Seconds of the slowest engine."""
    return max(max(times, default=0.0) for times in finished(engine, work, rates, room, seed))
