"""The actor's generating half: one vLLM engine. Prompts flow in, Rollouts flow out. The one place that drives vLLM.

The driver calls `generate` or `stream`; the trainer's rank 0 drives the methods of a weight push (see
`roles.weight_transfer`). The engine's core runs inside this process (`mp` workers only where the model is split over
several), so that one call does one thing and nothing runs on when it returns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from roles.batch import Prompts, Rollouts
from roles.config import Dtype, RolloutConfig
from roles.errors import RolloutError, WeightTransferError
from roles.weight_transfer import EngineFacts, TransferBackend

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

CPU_BLOCK_SIZE = 32
"""Tokens of a KV block on CPU: vLLM's attention kernels there want a multiple of 32."""

CPU_BATCHED_TOKENS = 4096
"""Most prompt tokens that one forward pass on CPU reads."""


@dataclass(frozen=True, slots=True)
class RolloutSetup:
    """All that one engine needs to start."""

    model_path: str
    device: Literal["cpu", "cuda"]
    dtype: Dtype
    """Of weights and KV cache; a push is cast to it."""
    seed: int
    rollout: RolloutConfig
    max_model_tokens: int
    """Longest prompt + response."""
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    """Tokens that end a response: see `stop_token_ids`."""
    backend: TransferBackend = "gloo"
    """How new weights arrive."""
    index: int = 0
    """Which of the engines this is: their workers are numbered through in the transfer group."""
    tensor_parallel_size: int = 1
    """Processes that share the model's layers; must divide its attention heads."""
    trust_remote_code: bool = False


def stop_token_ids(model_path: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """The tokens that end a response: the EOS of the folder's generation_config.json, else of its config.json, and of
    its tokenizer.
    """
    found: list[int] = [] if tokenizer_eos is None else [tokenizer_eos]
    for name in ("generation_config.json", "config.json"):
        file = model_path / name
        eos = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        if eos is not None:
            found += eos if isinstance(eos, list) else [eos]
            break
    return tuple(sorted(set(found)))


class RolloutEngine:
    """One vLLM instance with the weights of one version."""

    def __init__(self, setup: RolloutSetup) -> None:
        from transformers import AutoTokenizer

        _prepare_process(setup)
        self._setup = setup
        self._version: int | None = 0
        """Of the loaded weights; None once a push has begun and until it has been verified."""
        self._latest = 0
        """The highest version that a push has brought."""
        self._asleep: set[str] = set()
        """Parts whose memory has been given away."""
        self._requests = 0
        self._engine = _start_engine(setup)
        self._tokenizer = AutoTokenizer.from_pretrained(setup.model_path, trust_remote_code=setup.trust_remote_code)

    # Generating

    def generate(self, prompts: Prompts, version: int) -> Rollouts:
        """One response for each row, sampled with the row's seed (None: greedily) from the weights of `version`."""
        parts = [rollouts for _, rollouts in self._complete(prompts, max(len(prompts), 1), version)]
        return parts[0] if parts else self._rollouts(prompts, [])

    def stream(self, prompts: Prompts, version: int) -> Iterator[tuple[int, Rollouts]]:
        """As `generate`, in groups of `stream_samples` neighbouring rows, each as soon as its last row has finished.

        With each group comes the number of its first row. Which rows share a group is always the same.
        """
        yield from self._complete(prompts, self._setup.rollout.stream_samples or max(len(prompts), 1), version)

    def _complete(self, prompts: Prompts, group_size: int, version: int) -> Iterator[tuple[int, Rollouts]]:
        self._check_request(prompts, version)
        ids = self._add_requests(prompts)
        rows = {request: row for row, request in enumerate(ids)}
        outputs: dict[int, RequestOutput] = {}
        waiting = [range(start, min(start + group_size, len(ids))) for start in range(0, len(ids), group_size)]
        try:
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    outputs[rows[output.request_id]] = output
                for group in [g for g in waiting if all(row in outputs for row in g)]:
                    waiting.remove(group)
                    yield group.start, self._rollouts(prompts.select(group), [outputs[row] for row in group])
        finally:
            unfinished = [request for request, row in rows.items() if row not in outputs]
            if unfinished:  # the caller gave up, or the engine failed
                self._engine.abort_request(unfinished)
        if waiting:
            raise RolloutError(f"engine {self._setup.index} lost the requests of rows {[list(g) for g in waiting]}")

    def _check_request(self, prompts: Prompts, version: int) -> None:
        setup = self._setup
        if version != self._version:
            has = "no verified weights" if self._version is None else f"weights of version {self._version}"
            raise RolloutError(f"engine {setup.index} has {has}, not of version {version}; push them first")
        longest = max((len(ids) for ids in prompts.token_ids), default=0)
        if longest + setup.rollout.max_response_tokens > setup.max_model_tokens:
            raise RolloutError(
                f"a prompt of {longest} tokens and rollout.max_response_tokens={setup.rollout.max_response_tokens} "
                f"are more than the {setup.max_model_tokens} that engine {setup.index} takes; shorten the prompts"
            )
        if any(not ids for ids in prompts.token_ids):
            raise RolloutError(f"the prompt of row {prompts.token_ids.index([])} has no tokens; give it at least a BOS")

    def _add_requests(self, prompts: Prompts) -> list[str]:
        ids = []
        for token_ids, seed in zip(prompts.token_ids, prompts.seeds, strict=True):
            ids.append(str(self._requests))
            self._requests += 1
            self._engine.add_request(ids[-1], {"prompt_token_ids": token_ids}, _sampling(self._setup, seed))
        return ids

    def _rollouts(self, prompts: Prompts, outputs: Sequence[RequestOutput]) -> Rollouts:
        """Pad prompts and responses into one batch."""
        answers = [output.outputs[0] for output in outputs]
        responses = [list(answer.token_ids) for answer in answers]
        lengths = [len(p) + len(r) for p, r in zip(prompts.token_ids, responses, strict=True)]
        shape = (len(lengths), max(lengths, default=0))
        token_ids = torch.full(shape, self._setup.pad_token_id, dtype=torch.int64)
        response_mask = torch.zeros(shape, dtype=torch.bool)
        logprobs = torch.zeros(shape, dtype=torch.float32)
        for row, (prompt, response, answer) in enumerate(zip(prompts.token_ids, responses, answers, strict=True)):
            if answer.finish_reason not in ("stop", "length") or not response:
                raise RolloutError(f"engine {self._setup.index} ended row {row} with {answer.finish_reason!r}")
            begin, end = len(prompt), lengths[row]
            token_ids[row, :end] = torch.tensor(prompt + response)
            response_mask[row, begin:end] = True
            # FlatLogprobs: the sampled token's entry comes first at each position
            flat: Any = answer.logprobs
            logprobs[row, begin:end] = torch.tensor([flat.logprobs[start] for start in flat.start_indices])
        if not torch.isfinite(logprobs).all():
            raise RolloutError(f"engine {self._setup.index} sampled with log-probabilities that are not finite")
        return Rollouts(
            token_ids=token_ids,
            lengths=torch.tensor(lengths, dtype=torch.int64),
            response_mask=response_mask,
            rollout_logprobs=logprobs,
            finished=torch.tensor([answer.finish_reason == "stop" for answer in answers], dtype=torch.bool),
            versions=torch.full((len(lengths),), self._version or 0, dtype=torch.int64),
            prompts=prompts.texts,
            responses=[self._tokenizer.decode(response, skip_special_tokens=True) for response in responses],
            columns=prompts.columns,
        )

    # Making room for the roles that share the GPUs

    def sleep(self, keep_weights: bool) -> None:
        """Give the GPUs' memory away: the KV cache, and the weights, which go to the host if they are to be kept (or if
        `sleep` in the configuration is 1)."""
        self._engine.sleep(1 if keep_weights else self._setup.rollout.engine.sleep)
        self._asleep = {"weights", "kv_cache"}

    def wake(self, parts: tuple[str, ...]) -> None:
        """Take back the memory of `parts` (`weights`, `kv_cache`) that are asleep."""
        tags = [part for part in parts if part in self._asleep]
        if tags:
            self._engine.wake_up(tags)
            self._asleep -= set(tags)

    # Receiving weights; called by the trainer in this order

    def describe(self) -> EngineFacts:
        """What the trainer must know to connect."""
        setup = self._setup
        return EngineFacts(setup.index, setup.tensor_parallel_size, setup.dtype, setup.backend)

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Join the transfer group; `init_info`, the same for all engines, is that of the backend."""
        if "rank_offset" in init_info:
            first = init_info["rank_offset"] + self._setup.index * self._setup.tensor_parallel_size
            init_info = {**init_info, "rank_offset": first}
        self._engine.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def start_weight_update(self, version: int) -> None:
        """Make ready for the weights of `version`, which must be newer than any before."""
        if version <= self._latest:
            raise WeightTransferError(
                f"engine {self._setup.index} was pushed version {version} after version {self._latest}; "
                "versions must rise"
            )
        if self._engine.has_unfinished_requests():
            raise WeightTransferError(f"engine {self._setup.index} is generating; let it finish before a push")
        self._version = None
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("watch_weights")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive and load what the trainer sends meanwhile (several times, if the backend sends in chunks)."""
        self._engine.collective_rpc("update_weights", args=(update_info,))

    def finish_weight_update(self, version: int, digest: str) -> None:
        """Go over to `version` if every worker was given exactly the bytes that the trainer's `digest` is of."""
        self._engine.collective_rpc("finish_weight_update")
        received: list[str] = self._engine.collective_rpc("weights_digest")
        wrong = [rank for rank, theirs in enumerate(received) if theirs != digest]
        if wrong:
            raise WeightTransferError(
                f"version {version} arrived corrupted at tensor-parallel ranks {wrong} of engine {self._setup.index}: "
                f"digest {received[wrong[0]][:16]}… instead of {digest[:16]}…; push again under a higher version"
            )
        if not self._engine.reset_prefix_cache():
            raise WeightTransferError(f"engine {self._setup.index} could not drop the old weights' prefix cache")
        self._latest = self._version = version


def _sampling(setup: RolloutSetup, seed: int | None) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rollout = setup.rollout
    return SamplingParams(
        temperature=0.0 if seed is None else rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        seed=seed,
        max_tokens=rollout.max_response_tokens,
        min_tokens=rollout.min_response_tokens,
        stop_token_ids=list(setup.stop_token_ids),
        logprobs=0,  # the sampled token's only
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _is_eager(setup: RolloutSetup) -> bool:
    chosen = setup.rollout.engine.enforce_eager
    return setup.device == "cpu" if chosen is None else chosen


def _prepare_process(setup: RolloutSetup) -> None:
    """What vLLM reads from the environment when it is imported or starts workers; a value already set is kept."""
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if setup.device == "cpu":
        # Threads are the placement's business (OMP_NUM_THREADS): vLLM would pin each worker to cores of its own choice,
        # the same ones for every engine of the machine.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if _is_eager(setup):
            # vLLM compiles a helper of its sampler even so, which takes some 10 s at the first token.
            settings["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core in this process


def _start_engine(setup: RolloutSetup) -> LLMEngine:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    import roles.rollout_worker  # noqa: F401  # registers the gloo backend

    engine, on_cpu = setup.rollout.engine, setup.device == "cpu"
    special: dict[str, Any] = {"gpu_memory_utilization": engine.gpu_memory_utilization}
    if on_cpu:
        special = {
            "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),  # given, so no warm-up to measure it
            # vLLM 0.32 cannot turn back a CPU generator, as it does for a seeded prompt that it has split.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(setup.max_model_tokens, CPU_BATCHED_TOKENS),
        }
    if on_cpu or engine.block_size is not None:
        special["block_size"] = engine.block_size or CPU_BLOCK_SIZE
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=setup.model_path,
            skip_tokenizer_init=True,
            trust_remote_code=setup.trust_remote_code,
            dtype=setup.dtype,
            seed=setup.seed,
            max_model_len=setup.max_model_tokens,
            max_num_seqs=engine.max_sequences,
            tensor_parallel_size=setup.tensor_parallel_size,
            distributed_executor_backend="mp" if setup.tensor_parallel_size > 1 else "uni",
            worker_extension_cls="roles.rollout_worker.WeightReceiver",
            weight_transfer_config=WeightTransferConfig(backend=setup.backend),
            enforce_eager=_is_eager(setup),
            enable_prefix_caching=engine.prefix_caching,
            enable_sleep_mode=engine.sleep > 0,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled: after temperature, top-p, top-k
            generation_config="vllm",  # sampling is the run's configuration alone, not the folder's
            disable_log_stats=True,
            **special,
        )
    )
