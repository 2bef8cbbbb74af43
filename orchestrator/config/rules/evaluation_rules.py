"""Rules of evaluations: which set of held-out prompts decides, and how its responses are sampled."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.evaluation import EvaluationRun

LOWEST_TEMPERATURE = 0.01
"""vLLM's own limit of what is sampled."""


PLAIN_SET = "heldout"
"""What `prompts.heldout` is called beside the sets with names."""


def set_rules(config: EvaluationRun) -> Iterator[str]:
    """One set of held-out prompts compares the steps of a run, and there is no doubt which."""
    names, said = config.prompts.heldout_names, config.evaluation.decides
    if PLAIN_SET in names:
        yield f"prompts.heldout_sets.{PLAIN_SET}: the set in prompts.heldout is told under that name; use another one"
    known = ", ".join(filter(None, names))
    if said is not None and (not said or said not in names):
        yield (
            f"evaluation.decides={said} is no set of prompts.heldout_sets; "
            + (f"use one of {known}, or null" if known else "name sets there, or set it to null")
        )
    elif said is None and len(names) > 1 and names[0]:
        yield f"prompts.heldout_sets has {known}: say with evaluation.decides which of them compares the steps of a run"


def sampling_rules(config: EvaluationRun) -> Iterator[str]:
    """vLLM samples at this temperature, and several responses to a prompt differ."""
    said = config.evaluation.sampling
    if said is None:
        return
    if 0 < said.temperature < LOWEST_TEMPERATURE:
        yield (
            f"evaluation.sampling.temperature={said.temperature:g} is lower than vLLM samples at; use "
            f"{LOWEST_TEMPERATURE:g}, or 0 for the most likely tokens"
        )
    each = config.evaluation.responses_per_prompt
    if said.temperature == 0 and each > 1:
        yield (
            f"evaluation.sampling.temperature=0 gives the same response {each} times "
            f"(evaluation.responses_per_prompt={each}); use 1 response, or a temperature above 0"
        )
