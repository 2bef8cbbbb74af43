"""What one vLLM engine needs to start, and its start. A RolloutSetup flows in, vLLM's engine flows out."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from roles.config.environment import FunctionEnvironment
from roles.config.rollout import RolloutConfig
from roles.config.section import Dtype
from roles.generation.conversation import Limits
from roles.transfer.facts import ENGINE_NAME, TransferBackend

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

CPU_BLOCK_SIZE = 32
"""Tokens of a KV block on CPU: vLLM's attention kernels there want a multiple of 32."""

CPU_BATCHED_TOKENS = 4096
"""Most prompt tokens that one forward pass on CPU reads."""

WIDER_WINDOWS = ("cohere2", "cohere2_moe")
"""Model types whose sliding windows vLLM 0.32 makes a token longer than config.json says, as transformers does not."""


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


def stop_token_ids(model_path: Path, tokenizer_eos: int | None, configured: Sequence[int] = ()) -> tuple[int, ...]:
    """The tokens that end a response: the EOS of the folder's generation_config.json, else of its config.json, that of
    its tokenizer, and those `configured`.
    """
    found = [*configured, *([] if tokenizer_eos is None else [tokenizer_eos])]
    for name in ("generation_config.json", "config.json"):
        file = model_path / name
        eos = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        if eos is not None:
            found += eos if isinstance(eos, list) else [eos]
            break
    return tuple(sorted(set(found)))


def overrides(model_path: Path) -> dict[str, Any]:
    """What the engine must read otherwise than in the folder's config.json to compute what the trainer does."""
    file = model_path / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    wider = config.get("model_type") in WIDER_WINDOWS and config.get("sliding_window")
    return {"sliding_window": config["sliding_window"] - 1} if wider else {}


def prepare_process(setup: RolloutSetup) -> None:
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


def start_engine(setup: RolloutSetup) -> LLMEngine:
    """vLLM's engine with the weights of the folder. Call `prepare_process` before anything imports vLLM."""
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    import roles.transfer.vllm_worker  # noqa: F401  # registers the gloo backend

    # While it starts, vLLM collects garbage several times: with what was imported left out, 1.3 s of CPU instead of 3.
    gc.freeze()
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
    _meet_in_memory()
    started = LLMEngine.from_engine_args(
        EngineArgs(
            model=setup.model_path,
            hf_overrides=overrides(Path(setup.model_path)),
            skip_tokenizer_init=not setup.rollout.stop,
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
    _unname_shared_memory()
    return started


def _meet_in_memory() -> None:
    """Let vLLM's processes, all on this machine, meet over a file in memory, which ends with this process. By itself
    vLLM takes one in /tmp, which stays when an engine is killed."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    modules: tuple[Any, ...] = (multiproc_executor, uniproc_executor)
    for module in modules:
        module.get_file_store_init_method = lambda: f"file:///proc/{os.getpid()}/fd/{os.memfd_create('meeting')}"
    os.environ[ENGINE_NAME] = uuid4().hex


def _unname_shared_memory() -> None:
    """Take the names from the memory that the engine's processes share on a CPU: they have it open, and it ends with
    the last of them. By itself vLLM does so when it ends, and a killed engine would leave 4 MiB a process."""
    for file in Path("/dev/shm").glob(f"{os.environ[ENGINE_NAME]}-*"):
        file.unlink(missing_ok=True)


def _is_eager(setup: RolloutSetup) -> bool:
    chosen = setup.rollout.engine.enforce_eager
    return setup.device == "cpu" if chosen is None else chosen
