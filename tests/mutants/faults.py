"""Faults that people have made, or could make, in this kind of code: each is one replacement in one file."""

from __future__ import annotations

from tests.mutants.fault import Fault
from tests.mutants.wiring import WIRING

HEADS = "tests/unit/roles/model_files/test_value_heads.py"
EXPERIENCE = "tests/unit/orchestrator/ppo/test_experience.py"
ADVANTAGES = "tests/unit/orchestrator/ppo/test_advantages.py"
ANCHORS = "tests/unit/orchestrator/test_anchors.py"
CONVERSATION = "tests/unit/roles/generation/test_conversation.py"
LOSSES = "tests/unit/roles/losses/test_policy_loss.py"
STEP = "tests/unit/orchestrator/ppo/test_train_step.py"
ENGINE = "tests/integration/test_sharded.py"
ROLLOUT = "tests/integration/test_rollout.py"
TRANSFER = "tests/integration/test_weight_transfer.py"

FAULTS = (
    Fault(
        "KL sign turned",
        "orchestrator/ppo/experience.py",
        "torch.where(mask, -penalty, 0.0)",
        "torch.where(mask, penalty, 0.0)",
        EXPERIENCE,
    ),
    Fault(
        "KL dropped",
        "orchestrator/ppo/experience.py",
        "torch.where(mask, -penalty, 0.0)",
        "torch.zeros_like(penalty)",
        EXPERIENCE,
    ),
    Fault(
        "k3 in the reward",
        "orchestrator/ppo/experience.py",
        "estimate = KL_ESTIMATORS[ppo.kl.estimator]",
        'estimate = KL_ESTIMATORS["k3"]',
        EXPERIENCE,
    ),
    Fault(
        "score one token early",
        "orchestrator/ppo/experience.py",
        "rewards[rows, last_generated(mask)] += scores",
        "rewards[rows, last_generated(mask) - 1] += scores",
        EXPERIENCE,
    ),
    Fault(
        "score on the last column",
        "orchestrator/ppo/experience.py",
        "rewards[rows, last_generated(mask)] += scores",
        "rewards[:, -1] += scores",
        EXPERIENCE,
    ),
    Fault(
        "mask ignored in GAE (gaps and padding)",
        "orchestrator/ppo/advantages.py",
        "future = torch.where(valid, current, future)",
        "future = current",
        ADVANTAGES,
    ),
    Fault(
        "mask ignored in the loss",
        "roles/losses/means.py",
        "weight = mask.to(torch.float32)",
        "weight = torch.ones_like(mask, dtype=torch.float32)",
        LOSSES,
    ),
    Fault(
        "no bootstrap of truncated responses",
        "orchestrator/ppo/experience.py",
        "torch.where(scored.finished, 0.0, scored.values.gather(1, last).squeeze(1))",
        "torch.zeros(len(scored))",
        EXPERIENCE,
    ),
    Fault(
        "advantages shifted by a token",
        "orchestrator/ppo/experience.py",
        "advantages=whiten(advantages, trained) if ppo.whitens else advantages,",
        "advantages=(whiten(advantages, trained) if ppo.whitens else advantages).roll(1, 1),",
        EXPERIENCE,
    ),
    Fault(
        "old log-probabilities shifted by a token",
        "orchestrator/ppo/experience.py",
        "old_logprobs=scored.old_logprobs * trained,",
        "old_logprobs=scored.old_logprobs.roll(1, 1) * trained,",
        EXPERIENCE,
    ),
    Fault(
        "the reference at another temperature",
        "roles/reference.py",
        "temperature=self._temperature",
        "temperature=1.0",
        ENGINE,
    ),
    Fault(
        "vLLM at another temperature",
        "roles/generation/sampling.py",
        "else rollout.temperature",
        "else 1.0",
        ROLLOUT,
    ),
    Fault(
        "whitened in each micro-batch",
        "roles/actor.py",
        "            picked(batch.advantages, batch, rows, device),",
        "            torch.nn.functional.layer_norm(a := picked(batch.advantages, batch, rows, device), a.shape),",
        ENGINE,
    ),
    Fault(
        "mean of means",
        "roles/losses/means.py",
        'if mean == "sequence":',
        'if mean in ("sequence", "token"):',
        LOSSES,
    ),
    Fault(
        "value clip inverted",
        "roles/losses/value_loss.py",
        "0.5 * torch.maximum(plain, bounded), bounded > plain",
        "0.5 * torch.minimum(plain, bounded), bounded > plain",
        LOSSES,
    ),
    Fault(
        "ratio inverted",
        "roles/losses/policy_loss.py",
        "(wide(logprobs) - wide(old_logprobs)).clamp",
        "(wide(old_logprobs) - wide(logprobs)).clamp",
        LOSSES,
    ),
    Fault(
        "policy clip takes the smaller loss",
        "roles/losses/policy_loss.py",
        "loss = torch.maximum(plain, bounded)",
        "loss = torch.minimum(plain, bounded)",
        LOSSES,
    ),
    Fault("γ dropped", "orchestrator/ppo/advantages.py", "gamma * after - value", "after - value", ADVANTAGES),
    Fault("λ dropped", "orchestrator/ppo/advantages.py", "gamma * lambda_ * future", "gamma * future", ADVANTAGES),
    Fault(
        "RLOO compares with itself",
        "orchestrator/ppo/advantages.py",
        "(total - mean) * count / (count - 1).clamp(min=1)",
        "total - mean",
        ADVANTAGES,
    ),
    Fault(
        "ReMax without its baseline",
        "orchestrator/ppo/step.py",
        "baselines = shape_scores(greedy_scores, greedy, ppo, state.scale).repeat_interleave(each)",
        "baselines = 0 * shape_scores(greedy_scores, greedy, ppo, state.scale).repeat_interleave(each)",
        STEP,
    ),
    Fault(
        "stale weights from the second push on",
        "roles/transfer/vllm_worker.py",
        "            return load(model, _counted(weights, digest), *args, **kwargs)",
        "            counted = list(_counted(weights, digest))\n"
        "            fresh = not hasattr(type(self), 'pushed')\n"
        "            type(self).pushed = True\n"
        "            return load(model, counted if fresh else [], *args, **kwargs)",
        TRANSFER,
    ),
    Fault(
        "the trained actor in place of the reference",
        "orchestrator/groups/scoring.py",
        "reference_logprobs=spread(roles.reference, FrozenPolicy.reference_logprobs, rollouts),",
        "reference_logprobs=spread(roles.actor, Actor.logprobs, rollouts),",
        STEP,
    ),
    Fault(
        "loss scaled by the number of micro-batches",
        "roles/zero/sharded.py",
        "self._deepspeed.backward(summed * scale)",
        "self._deepspeed.backward(summed * scale * len(bins))",
        ENGINE,
    ),
    Fault(
        "loss averaged over ranks",
        "roles/zero/sharded.py",
        "scale = self.world_size / max(",
        "scale = 1 / max(",
        ENGINE,
    ),
    Fault(
        "seed ignored in the order of the prompts",
        "orchestrator/data/prompts.py",
        'stable_seed(self._seed, "order", self._pass)',
        'stable_seed(0, "order", self._pass)',
        "tests/unit/orchestrator/data/test_prompts.py",
    ),
    Fault(
        "seed ignored in sampling",
        "roles/generation/sampling.py",
        "        seed=turn.seed,\n",
        "        seed=1,\n",
        ROLLOUT,
    ),
    Fault(
        "the same permutation in every epoch",
        "orchestrator/ppo/mini_batches.py",
        "        order = torch.randperm(rows, generator=generator).tolist()",
        "        order = torch.randperm(rows, generator=generator.manual_seed(seed)).tolist()",
        EXPERIENCE,
    ),
    Fault(
        "the controller steers the wrong way",
        "orchestrator/ppo/kl.py",
        "kl / self.target - 1.0",
        "1.0 - kl / self.target",
        "tests/unit/orchestrator/ppo/test_kl.py",
    ),
    Fault(
        "the KL coefficient is lost on resume",
        "orchestrator/ppo/step.py",
        '_PARTS: ClassVar = ("prompts", "kl", "scale", "value_scale", "canary")',
        '_PARTS: ClassVar = ("prompts", "scale", "value_scale", "canary")',
        "tests/unit/orchestrator/stages/test_ppo.py",
    ),
    Fault(
        "the actor trains during the critic's warm-up",
        "orchestrator/ppo/step.py",
        "    return state.warm_at is not None\n",
        "    return True\n",
        STEP,
    ),
    Fault(
        "normalised values read as plain ones",
        "orchestrator/ppo/experience.py",
        "scored = replace(scored, values=value_scale.restored(critics))",
        "scored = replace(scored, values=critics)",
        EXPERIENCE,
    ),
    Fault(
        "importance weights inverted",
        "roles/losses/importance.py",
        "return log_ratio(old_logprobs.detach(), rollout_logprobs.detach()).exp()",
        "return log_ratio(rollout_logprobs.detach(), old_logprobs.detach()).exp()",
        "tests/unit/roles/losses/test_importance.py",
    ),
    Fault(
        "prompts end with what the tokenizer puts there",
        "roles/text/prompt_tokens.py",
        "tokenizer(list(texts), add_special_tokens=False)",
        "tokenizer(list(texts))",
        "tests/unit/roles/text/test_prompt_tokens.py",
    ),
    Fault(
        "BOS twice",
        "roles/text/prompt_tokens.py",
        "[ids if _begins(ids, before, tokenizer) else before + ids for ids in found]",
        "[before + ids for ids in found]",
        "tests/unit/roles/text/test_prompt_tokens.py",
    ),
    Fault(
        "a pair's response ends twice",
        "orchestrator/data/preference_pairs.py",
        "[list(ids) if list(ids[-1:]) == [eos] else [*ids, eos] for ids in found]",
        "[[*ids, eos] for ids in found]",
        "tests/unit/orchestrator/data/test_preference_pairs.py",
    ),
    Fault(
        "columns have types",
        "orchestrator/data/dataset_rows.py",
        '    rows = read_csv(path) if path.suffix == ".csv" else read_json(path)\n',
        '    if path.suffix == ".jsonl":\n'
        '        return _typed(datasets.load_dataset("json", data_files={"train": str(path)}, split=split))\n'
        '    rows = read_csv(path) if path.suffix == ".csv" else read_json(path)\n',
        "tests/unit/orchestrator/ppo/test_scored_columns.py",
    ),
    Fault(
        "entropy is punished",
        "roles/actor.py",
        "loss = loss - config.entropy_coefficient",
        "loss = loss + config.entropy_coefficient",
        ENGINE,
    ),
    Fault(
        "values read one token late",
        "roles/zero/micro_batch.py",
        "(starts[row] + column - 1).to(device)",
        "(starts[row] + column).to(device)",
        "tests/unit/roles/zero/test_micro_batch.py",
    ),
    Fault(
        "what the environment said is trained on",
        "roles/generation/conversation.py",
        "[logprobs is not None] * len(token_ids)",
        "[True] * len(token_ids)",
        CONVERSATION,
    ),
    Fault(
        "a cut conversation counts as finished",
        "roles/generation/conversation.py",
        "finished=messages is None and not cut",
        "finished=True",
        CONVERSATION,
    ),
    Fault(
        "every turn is sampled with the same seed",
        "roles/generation/conversation.py",
        'stable_seed(seed, "turn", number) if number and seed is not None else seed',
        "seed",
        CONVERSATION,
    ),
    Fault(
        "all that the environment pays is paid at the end",
        "orchestrator/ppo/experience.py",
        "shape_rewards(scores - scored.turn_rewards.sum(1), penalty, generated) + scored.turn_rewards",
        "shape_rewards(scores, penalty, generated)",
        EXPERIENCE,
    ),
    Fault(
        "the end of a turn is written twice",
        "roles/generation/turn_format.py",
        "tokens[1:] if tokens[:1] == [end] else tokens",
        "tokens",
        "tests/unit/roles/generation/test_turn_format.py",
    ),
    Fault(
        "responses to one task have different games",
        "orchestrator/data/prompts.py",
        "[row - row % responses_per_prompt for row in range(len(rows))]",
        "list(range(len(rows)))",
        "tests/unit/orchestrator/data/test_prompts.py",
    ),
    Fault(
        "a head's bias is dropped",
        "roles/model_files/value_heads.py",
        'return Head(name, f"{name}.bias" in stored)',
        "return Head(name, False)",
        HEADS,
    ),
    Fault(
        "a head under another name is drawn anew",
        "roles/models/networks.py",
        "if head is not None and not head.usual:",
        "if False:",
        HEADS,
    ),
    Fault(
        "mean and std of a reward model are ignored",
        "roles/model_files/value_heads.py",
        'if ours or not theirs or config.get("normalize_reward") is False:',
        "if True:",
        HEADS,
    ),
    Fault(
        "weights too many pass the door",
        "roles/model_files/weight_check.py",
        "unexpected = frozenset(self._stored_names(report.unexpected_keys, stored))",
        "unexpected: frozenset[str] = frozenset()",
        "tests/unit/roles/model_files/test_weight_check.py",
    ),
    Fault(
        "a reward model is trained on from numbers that are centred twice",
        "roles/reward_trainer.py",
        "self._model.module.rescale(-score_shift, 1.0)",
        "self._model.module.model.config.score_shift = score_shift",
        HEADS,
    ),
    Fault(
        "a GGUF file's rope scaling is lost",
        "roles/model_files/gguf_file.py",
        "scaled = _changed(made, rope_parameters(made, file, rope))",
        "scaled = made",
        "tests/unit/roles/model_files/test_gguf.py",
    ),
    Fault(
        "one part of a split GGUF file is taken for the whole",
        "roles/model_files/gguf_header.py",
        "if parts > 1:",
        "if False:",
        "tests/unit/roles/model_files/test_gguf.py",
    ),
    *WIRING,
)
