"""Keys of other systems: what they are called here, or why they are refused. Pure."""

from __future__ import annotations

_DEPENDS = (
    "refused: it changes each token's probability by what the response has said so far; the actor's and the "
    "reference's log-probabilities are those without it, so ratios and KL would not be those of the sampled policy"
)
_REPETITION = f"{_DEPENDS}; leave it out; let the reward function score repetition (`alerts.repeated_text` warns of it)"

FOREIGN_KEYS = {
    "repetition_penalty": _REPETITION,
    "presence_penalty": _REPETITION,
    "frequency_penalty": _REPETITION,
    "bad_words": f"{_DEPENDS}; leave it out; let the reward function score responses that hold such words",
    "input_key": "here it is `prompts.column`; elsewhere `columns: {prompt: NAME}` of the data set",
    "prompt_key": "here it is `prompts.column`; elsewhere `columns: {prompt: NAME}` of the data set",
    "output_key": "here it is `columns: {completion: NAME}` of the data set",
    "chosen_key": "here it is `columns: {chosen: NAME}` of the data set",
    "rejected_key": "here it is `columns: {rejected: NAME}` of the data set",
    "label_key": "here it is `reward.label`: the column that the reward function gets as labels",
    "apply_chat_template": "leave it out: a column of chats goes through the chat template, texts do not",
    "max_prompt_length": "here it is `prompts.max_tokens`",
    "max_response_length": "here it is `rollout.max_response_tokens`",
    "max_completion_length": "here it is `rollout.max_response_tokens`",
    "num_generations": "here it is `rollout.responses_per_prompt`",
    "n_samples_per_prompt": "here it is `rollout.responses_per_prompt`",
    "init_kl_coef": "here it is `ppo.kl.controller.coefficient`",
    "kl_coef": "here it is `ppo.kl.controller.coefficient`",
}
"""Last name of a key path → what to do about it."""
