"""Rules of labelling with a judge."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.labelling import EndpointJudge, LabellingRun, SampledCandidates
from orchestrator.config.rules.sampling_rules import cpu_engine_rules


def labelling_rules(config: LabellingRun) -> Iterator[str]:
    """Money needs prices, a model an engine that runs on the device, and a comparison two responses."""
    labelling, judge = config.labelling, config.labelling.judge
    if labelling.candidates is not None:
        yield from _candidate_rules(config, labelling.candidates)
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


def _candidate_rules(config: LabellingRun, candidates: SampledCandidates) -> Iterator[str]:
    key = "labelling.candidates"
    yield from cpu_engine_rules(f"{key}.engine", candidates.engine, config.device)
    if candidates.max_tokens <= candidates.response_tokens:
        yield (
            f"{key}.max_tokens={candidates.max_tokens} leaves no room for a prompt beside a response of {key}."
            f"response_tokens={candidates.response_tokens}; raise it, or lower that"
        )
    if candidates.responses < 2 and config.labelling.constitution is None:
        yield f"{key}.responses={candidates.responses}, but a judge compares two or more; raise it"
