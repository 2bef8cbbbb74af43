"""The actor's generating half: one vLLM engine. Prompts flow in, Rollouts flow out. The one place that drives vLLM.

The driver calls `generate` or `stream`; the trainer's rank 0 drives the methods of a weight push (see
`roles.transfer.push`). The engine's core runs inside this process (`mp` workers only where the model is split over
several), so that one call does one thing and nothing runs on when it returns.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from roles.batch import Prompts, Rollouts
from roles.config.environment import FunctionEnvironment
from roles.config.rollout import RolloutConfig
from roles.config.section import Dtype
from roles.errors import RolloutError, WeightTransferError
from roles.generation.conversation import Conversations, Limits, Turn
from roles.generation.environments import Environments
from roles.generation.sampling import sampling
from roles.generation.turn_format import TurnFormat
from roles.transfer.facts import EngineFacts, TransferBackend
from roles.transfer.probe import EngineProducts

if TYPE_CHECKING:
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
    """Longest sample: prompt + response, or a conversation."""
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
    environment: FunctionEnvironment | None = None
    """What the policy converses with; None: a sample is one response."""
    max_prompt_tokens: int = 0
    """Of an environment's first messages; not read without one."""

    @property
    def limits(self) -> Limits:
        """What cuts a sample."""
        response = self.rollout.max_response_tokens
        return Limits(response, self.max_model_tokens, self.max_prompt_tokens, self.environment)


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
        self._read, self._cached = 0, 0
        """Tokens before the responses so far, and those of them that came from the prefix cache."""
        self._engine = _start_engine(setup)
        tokenizer = AutoTokenizer.from_pretrained(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._format = TurnFormat(tokenizer)
        self._environments = Environments(setup.environment) if setup.environment else None

    # Generating

    def generate(self, prompts: Prompts, version: int) -> Rollouts:
        """One response for each row, sampled with the row's seed (None: greedily) from the weights of `version`."""
        parts = [rollouts for _, rollouts in self._complete(prompts, max(len(prompts), 1), version)]
        if parts:
            return parts[0]
        nothing = Conversations(prompts, self._setup.limits, self._format, None)
        return nothing.rollouts([], version, self._setup.pad_token_id)

    def stream(self, prompts: Prompts, version: int) -> Iterator[tuple[int, Rollouts]]:
        """As `generate`, in groups of `stream_samples` neighbouring rows, each as soon as its last row has finished.

        With each group comes the number of its first row. Which rows share a group is always the same.
        """
        yield from self._complete(prompts, self._setup.rollout.stream_samples or max(len(prompts), 1), version)

    def _complete(self, prompts: Prompts, group_size: int, version: int) -> Iterator[tuple[int, Rollouts]]:
        self._check_version(version)
        setup, rows = self._setup, len(prompts)
        samples = Conversations(prompts, setup.limits, self._format, self._environments)
        waiting = [range(start, min(start + group_size, rows)) for start in range(0, rows, group_size)]
        running: dict[str, int] = {}
        try:
            while samples.open:
                for turn in samples.turns(patient=not running):
                    running[self._add_request(turn)] = turn.row
                for output in self._engine.step() if running else ():
                    self._hand_over(output, running.pop(output.request_id), samples)
                if running and not self._engine.has_unfinished_requests():
                    lost = sorted(running.values())
                    raise RolloutError(f"engine {setup.index} lost the requests of rows {lost}")
                for group in [g for g in waiting if samples.open.isdisjoint(g)]:
                    waiting.remove(group)
                    yield group.start, samples.rollouts(group, version, setup.pad_token_id)
            if self._environments:
                print(f"conversations: {self._cached} of {self._read} tokens read so far came from the prefix cache")
        finally:
            if running:  # the caller gave up, or the engine failed
                self._engine.abort_request(list(running))

    def _check_version(self, version: int) -> None:
        if version != self._version:
            has = "no verified weights" if self._version is None else f"weights of version {self._version}"
            raise RolloutError(f"engine {self._setup.index} has {has}, not of version {version}; push them first")

    def _add_request(self, turn: Turn) -> str:
        """Its name."""
        name = str(self._requests)
        self._requests += 1
        how = sampling(self._setup.rollout, self._setup.stop_token_ids, turn)
        self._engine.add_request(name, {"prompt_token_ids": turn.token_ids}, how)
        return name

    def _hand_over(self, output: RequestOutput, row: int, samples: Conversations) -> None:
        """A response that is whole."""
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length") or not answer.token_ids:
            raise RolloutError(f"engine {self._setup.index} ended row {row} with {answer.finish_reason!r}")
        # FlatLogprobs: the sampled token's entry comes first at each position
        flat: Any = answer.logprobs
        logprobs = [flat.logprobs[start] for start in flat.start_indices]
        if not all(map(math.isfinite, logprobs)):
            raise RolloutError(f"engine {self._setup.index} sampled with log-probabilities that are not finite")
        self._read += len(output.prompt_token_ids or ())
        self._cached += output.num_cached_tokens or 0
        samples.take(row, list(answer.token_ids), logprobs, cut=answer.finish_reason == "length")

    # Making room for the roles that share the GPUs

    def sleep(self, keep_weights: bool) -> None:
        """Give the GPUs' memory away: the KV cache, and the weights, which go to the host if they are to be kept (or if
        `sleep` in the configuration is 1)."""
        if len(self._asleep) == 2:  # both already
            return
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
        """Go over to `version` if every worker was given exactly the bytes that the trainer's `digest` is of, and every
        parameter that it holds was loaded from them."""
        received: list[tuple[str, list[str]]] = self._engine.collective_rpc("weights_received")
        self._engine.collective_rpc("finish_weight_update")
        self._engine.collective_rpc("give_back")
        where = f"of engine {self._setup.index}"
        wrong = [rank for rank, (theirs, _) in enumerate(received) if theirs != digest]
        if wrong:
            raise WeightTransferError(
                f"version {version} arrived corrupted at tensor-parallel ranks {wrong} {where}: digest "
                f"{received[wrong[0]][0][:16]}… instead of {digest[:16]}…; push again under a higher version"
            )
        missing = [name for _, names in received for name in names]
        if missing:
            raise WeightTransferError(
                f"version {version} leaves {len(missing)} parameters {where} without new weights, {missing[0]} first: "
                "vLLM's model knows them by other names than the trainer's; use a model of another architecture"
            )
        if not self._engine.reset_prefix_cache():
            raise WeightTransferError(f"engine {self._setup.index} could not drop the old weights' prefix cache")
        self._latest = self._version = version

    def weight_products(self) -> EngineProducts | None:
        """What tells this engine's weights from the trainer's (`roles.transfer.probe`); None where that is not to be
        had: the weights are split over several workers, or asleep."""
        if self._setup.tensor_parallel_size > 1 or "weights" in self._asleep:
            return None
        answer: EngineProducts = self._engine.collective_rpc("weight_products")[0]
        return answer


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
    else:  # FlashInfer's sampler, which vLLM would compile, gives no log-probabilities after top-p and top-k
        settings["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core in this process


def _start_engine(setup: RolloutSetup) -> LLMEngine:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    import roles.transfer.vllm_worker  # noqa: F401  # registers the gloo backend

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
            worker_extension_cls="roles.transfer.vllm_worker.WeightReceiver",
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
