"""The actor's generating half: one vLLM engine. Prompts flow in, Rollouts flow out. The one place that drives vLLM.

The driver calls `generate` or `stream`; the trainer's rank 0 drives the methods of a weight push (see
`roles.transfer.push`). The engine's core runs inside this process (`mp` workers only where the model is split over
several), so that one call does one thing and nothing runs on when it returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from roles.batch import Prompts, Rollouts
from roles.config.rollout import RolloutConfig
from roles.errors import RolloutError, WeightTransferError
from roles.generation.conversation import Conversations, Turn
from roles.generation.environments import Environments
from roles.generation.sampling import sampling
from roles.generation.turn_format import TurnFormat
from roles.rollout_facts import RolloutFacts
from roles.rollout_setup import RolloutSetup, prepare_process, start_engine
from roles.spans import count
from roles.transfer.facts import EngineFacts
from roles.transfer.probe import EngineProducts

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


class RolloutEngine:
    """One vLLM instance with the weights of one version."""

    def __init__(self, setup: RolloutSetup) -> None:
        from transformers import AutoTokenizer

        prepare_process(setup)
        from roles.generation.quick_outputs import quicken

        self._setup = setup
        self._version: int | None = 0
        """Of the loaded weights; None once a push has begun and until it has been verified."""
        self._latest = 0
        """The highest version that a push has brought."""
        self._asleep: set[str] = set()
        """Parts whose memory has been given away."""
        self._requests = 0
        self._generated = 0
        """Tokens of the responses that have ended."""
        self._read, self._cached = 0, 0
        """Tokens before the responses so far, and those of them that came from the prefix cache."""
        self._engine = start_engine(setup)
        quicken(self._engine)
        tokenizer = AutoTokenizer.from_pretrained(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._format = TurnFormat(tokenizer)
        self._environments = Environments(setup.environment) if setup.environment else None

    # Generating

    def generate(self, prompts: Prompts, version: int, sampled: Mapping[str, float] | None = None) -> Rollouts:
        """One response for each row, sampled with the row's seed (None: greedily) from the weights of `version`;
        `sampled`: keys of `rollout` with other values for these."""
        rollout = self._setup.rollout.model_copy(update=dict(sampled or {}))
        parts = [rollouts for _, rollouts in self._complete(prompts, max(len(prompts), 1), version, rollout)]
        if parts:
            return parts[0]
        nothing = Conversations(prompts, self._setup.limits, self._format, None)
        return nothing.rollouts([], version, self._setup.pad_token_id)

    def stream(self, prompts: Prompts, version: int) -> Iterator[tuple[int, Rollouts]]:
        """As `generate`, in groups of `stream_samples` neighbouring rows, each as soon as its last row has finished.

        With each group comes the number of its first row. Which rows share a group is always the same.
        """
        rollout = self._setup.rollout
        yield from self._complete(prompts, rollout.stream_samples or max(len(prompts), 1), version, rollout)

    def stream_kept(self, prompts: Prompts, version: int) -> Iterator[tuple[int, RolloutFacts] | Rollouts]:
        """As `stream`, in pairs: the number of a group's first row with small facts of its rows, then the rows."""
        for first, rollouts in self.stream(prompts, version):
            yield first, RolloutFacts.of(rollouts)
            yield rollouts

    def _complete(
        self, prompts: Prompts, group_size: int, version: int, rollout: RolloutConfig
    ) -> Iterator[tuple[int, Rollouts]]:
        self._check_version(version)
        setup, rows = self._setup, len(prompts)
        samples = Conversations(prompts, setup.limits, self._format, self._environments)
        waiting = [range(start, min(start + group_size, rows)) for start in range(0, rows, group_size)]
        running: dict[str, int] = {}
        try:
            while samples.open:
                for turn in samples.turns(patient=not running):
                    running[self._add_request(turn, rollout)] = turn.row
                for output in self._engine.step() if running else ():
                    self._hand_over(output, running.pop(output.request_id), samples)
                count("open responses", len(samples.open))
                count("generated tokens", self._generated)
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

    def _add_request(self, turn: Turn, rollout: RolloutConfig) -> str:
        """Its name."""
        name = str(self._requests)
        self._requests += 1
        how = sampling(rollout, self._setup.stop_token_ids, turn)
        self._engine.add_request(name, {"prompt_token_ids": turn.token_ids}, how)
        return name

    def _hand_over(self, output: RequestOutput, row: int, samples: Conversations) -> None:
        """A response that is whole."""
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length") or not answer.token_ids:
            raise RolloutError(f"engine {self._setup.index} ended row {row} with {answer.finish_reason!r}")
        flat: Any = answer.logprobs  # FlatLogprobs: only the sampled tokens' were asked for
        logprobs = list(flat.logprobs)
        if not all(map(math.isfinite, logprobs)):
            raise RolloutError(f"engine {self._setup.index} sampled with log-probabilities that are not finite")
        self._generated += len(answer.token_ids)
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

    def init_weight_transfer(self, init_info: dict[str, Any], engines: Sequence[int]) -> None:
        """Join the transfer group of `engines` (their indices, in order); `init_info`, the same for all of them, is
        that of the backend."""
        if "rank_offset" in init_info:
            place = engines.index(self._setup.index)
            first = init_info["rank_offset"] + place * self._setup.tensor_parallel_size
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
