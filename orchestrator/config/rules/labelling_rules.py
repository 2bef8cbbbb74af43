"""Rules of labelling with a judge."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.labelling import EndpointJudge, LabellingRun
from orchestrator.config.rules.sampling_rules import cpu_engine_rules


def labelling_rules(config: LabellingRun) -> Iterator[str]:
    """Money needs prices, and a model judge an engine that runs on the device."""
    labelling, judge = config.labelling, config.labelling.judge
    if not isinstance(judge, EndpointJudge):
        yield from cpu_engine_rules("labelling.judge.engine", judge.engine, config.device)
        if judge.max_tokens <= labelling.reply_tokens and labelling.constitution is not None:
            yield (
                f"labelling.judge.max_tokens={judge.max_tokens} leaves no room for a question beside an answer of "
                f"labelling.reply_tokens={labelling.reply_tokens}; raise it, or lower that"
            )
    if labelling.budget.money is not None and (not isinstance(judge, EndpointJudge) or judge.prices is None):
        key = "labelling.judge.prices=null" if isinstance(judge, EndpointJudge) else "labelling.judge.type=model"
        yield f"labelling.budget.money={labelling.budget.money}, but {key} has no prices; use tokens, or add them"
