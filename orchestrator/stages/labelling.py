"""`tetrarch label`: prompts with responses flow in, preferences with soft labels flow out; or, with a constitution,
revised responses as demonstrations and as preferences. Those of which nothing is learned flow out with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.counts import counted
from cluster.runtime.orders import ORDERS
from orchestrator.config.labelling import ANSWERS, Constitution, EndpointJudge, LabellingRun
from orchestrator.data.answer_file import AnswerFile, open_answers
from orchestrator.data.candidates import Candidates
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion
from orchestrator.data.judge_tasks import Compared, NoLabel, Revised, Task, compare, pairs_of, revise
from orchestrator.data.label_summary import LabelSummary
from orchestrator.data.labels import Reliability, labelled_row
from orchestrator.data.records import Record
from orchestrator.errors import LabellingStopped
from orchestrator.report.progress import Progress, make_progress
from orchestrator.run.run_lock import held
from orchestrator.stages.asked_endpoint import AskedEndpoint
from orchestrator.stages.asking import Asking, Judge
from roles.durable import replace_durably
from roles.text.messages import TOOLS

TASKS_AT_A_TIME = 256
"""Comparisons or revisions that are under way together."""
PAIRS, DEMONSTRATIONS, SUMMARY = "pairs.jsonl", "demonstrations.jsonl", "summary.json"
LEFT_OUT = "left-out.jsonl"
"""File in the output with what was asked about and gave no row, each with the reason; another judge can read it."""


@dataclass(slots=True)
class Labelled:
    """What has come out so far."""

    results: list[Compared | Revised] = field(default_factory=list)
    refused: list[NoLabel] = field(default_factory=list)
    """Tasks with a question that the judge refused."""
    unfinished: int = 0
    """Tasks with a question that was not asked."""


def label_responses(
    config: LabellingRun, records: Sequence[Record], rules: Constitution | None, key: str | None
) -> LabelSummary:
    """Ask the judge about the responses of `records`; write the outcome to `labelling.output`.

    LabellingStopped if the budget ended it, or the judge; what was labelled is written nevertheless.

    Args:
        rules: the constitution, if responses are revised.
        key: the endpoint's key, if it wants one.
    """
    run_dir, output = Path(config.run_dir), Path(config.labelling.output)
    with held(run_dir), open_answers(run_dir / ANSWERS) as file, closing(make_progress("label", 0, 0)) as progress:
        ORDERS.listen()
        with _told_how_to_go_on(progress, run_dir, file):
            sampled = _with_responses(config, records, progress)
            tasks = list(_tasks(config, sampled.records, rules))
            with _judge(config, key, progress) as judge:
                prices = config.labelling.judge.prices if isinstance(config.labelling.judge, EndpointJudge) else None
                asking = Asking(judge, file, config.labelling.budget, prices)
                done = _carried_out(tasks, asking, progress)
        summary = _written(config, sampled, done, asking)
        progress.lines("\n".join([*summary.lines(), f"written to {output}; all answers are in {run_dir / ANSWERS}"]))
    if asking.stopped is not None:
        raise LabellingStopped(
            f"{asking.stopped}\n{len(tasks) - done.unfinished} of {len(tasks)} are done, and what they gave is in "
            f"{output}. To go on, run the same command again: nothing that was answered is asked or paid for again"
        )
    return summary


def _with_responses(config: LabellingRun, records: Sequence[Record], progress: Progress) -> Candidates:
    """The records with the policy's responses, if it is asked for them."""
    if config.labelling.candidates is None:
        return Candidates(records)
    from orchestrator.stages.sampled_candidates import sampled_candidates  # loads torch, Ray and transformers

    each = counted(config.labelling.candidates.responses, "response")
    progress.status(f"sampling {each} to each of {counted(len(records), 'prompt')}")
    return sampled_candidates(config, records, progress.lines)


def _tasks(config: LabellingRun, records: Sequence[Record], rules: Constitution | None) -> Iterator[Task]:
    labelling = config.labelling
    for record in records:
        if rules is not None:
            dialogue = revise(record, rules, labelling, config.seed)
            yield Task(record.prompt, record.responses[:1], dialogue, record.tools)
            continue
        for pair in pairs_of(record, labelling.pairs_per_prompt, config.seed):
            dialogue = compare(record.prompt, pair, labelling, config.answer_tokens)
            yield Task(record.prompt, pair, dialogue, record.tools)


def _carried_out(tasks: Sequence[Task], asking: Asking, progress: Progress) -> Labelled:
    """Go through all tasks, some at a time. Once nothing is asked any more, those are finished whose answers are
    known."""
    done = Labelled()
    for first in range(0, len(tasks), TASKS_AT_A_TIME):
        if asking.stopped is None:
            progress.status(f"asking the judge, {first} of {len(tasks)} done")
        waiting = {task: next(task.dialogue) for task in tasks[first : first + TASKS_AT_A_TIME]}
        while waiting:
            waiting = _one_round(waiting, asking, done)
    return done


def _one_round(waiting: dict[Task, list[JudgeQuestion]], asking: Asking, done: Labelled) -> dict[Task, list[Any]]:
    """Answer each task's questions; the tasks that have more."""
    answers = iter(asking.answers([question for questions in waiting.values() for question in questions]))
    going_on: dict[Task, list[JudgeQuestion]] = {}
    for task, questions in waiting.items():
        own = [next(answers) for _ in questions]
        known: list[JudgeAnswer] = [answer for answer in own if answer is not None]
        if len(known) < len(own):
            refusal = next(filter(None, map(asking.refusal, questions)), None)
            if refusal is None:
                done.unfinished += 1
            else:
                reason = f"the judge refused the question: {refusal.reason}"
                done.refused.append(NoLabel(task.prompt, task.responses, reason, task.tools))
            continue
        try:
            going_on[task] = task.dialogue.send(known)
        except StopIteration as end:
            done.results.append(replace(end.value, tools=task.tools))
    return going_on


@contextmanager
def _judge(config: LabellingRun, key: str | None, progress: Progress) -> Iterator[Judge]:
    judge = config.labelling.judge
    if isinstance(judge, EndpointJudge):
        yield AskedEndpoint(judge, key)
        return
    from orchestrator.stages.asked_model import AskedModel  # loads torch, Ray and transformers

    assert config.engines is not None
    with ExitStack() as started:
        yield AskedModel(config.engines, started, tell=progress.lines)


@contextmanager
def _told_how_to_go_on(progress: Progress, run_dir: Path, file: AnswerFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        count, kept = file.spent.requests, run_dir / ANSWERS
        progress.lines(f"{count} answers are kept in {kept}; run the same command again to go on from there")
        raise


def _written(config: LabellingRun, sampled: Candidates, done: Labelled, asking: Asking) -> LabelSummary:
    """Write the rows and the summary."""
    output = Path(config.labelling.output)
    compared = [result for result in done.results if isinstance(result, Compared)]
    revised = [result for result in done.results if isinstance(result, Revised)]
    pairs, demonstrations, left_out = list[dict[str, Any]](), list[dict[str, Any]](), [*sampled.alike, *done.refused]
    for comparison in compared:
        row = _pair(comparison, config.labelling.minimum_probability)
        if isinstance(row, NoLabel):
            left_out.append(row)
        else:
            pairs.append(row)
    for result in revised:
        if result.revised is None:
            own = (result.original,) if result.original else ()
            reason = "the revision is empty, or cut at labelling.reply_tokens"
            left_out.append(NoLabel(result.prompt, own, reason, result.tools))
            continue
        asked = _asked(result)
        demonstrations.append({**asked, "completion": result.revised})
        if result.revised != result.original:
            pairs.append({**asked, "chosen": result.revised, "rejected": result.original})
    spent, decided = asking.file.spent, [result for result in compared if result.verdict.probability is not None]
    summary = LabelSummary(
        pairs=len(pairs),
        demonstrations=len(demonstrations),
        judge=Reliability.of([result.verdict for result in compared]) if compared else None,
        undecided=len(decided) - len(pairs) if compared else 0,
        unrevised=len(revised) - len(demonstrations),
        refused=len(done.refused),
        unfinished=done.unfinished,
        asked=asking.asked,
        reused=asking.reused,
        spent=spent,
        cost=None if asking.prices is None else spent.money(asking.prices),
        stopped=asking.stopped,
        first_refusal=next((refusal.reason for refusal in asking.refusals.values()), None),
        candidates=sampled.counts,
    )
    output.mkdir(parents=True, exist_ok=True)
    _write(output / PAIRS, "".join(map(_line, pairs)))
    if config.labelling.constitution is not None:
        _write(output / DEMONSTRATIONS, "".join(map(_line, demonstrations)))
    _write(
        output / LEFT_OUT,
        "".join(_line({**_asked(one), "responses": one.responses, "reason": one.reason}) for one in left_out),
    )
    _write(output / SUMMARY, json.dumps(summary.values(), indent=1) + "\n")
    return summary


def _pair(compared: Compared, minimum: float) -> dict[str, Any] | NoLabel:
    """The row of a comparison that is decided; or why there is none."""
    prompt, responses, probability = compared.prompt, compared.responses, compared.verdict.probability
    if probability is None:
        said = " and ".join(repr(text) for text in compared.said)
        told = f"the judge abstained; it said, in the two orders: {said}"
        return NoLabel(prompt, responses, told, compared.tools)
    row = labelled_row(prompt, responses, probability, minimum)
    told = f"undecided: the first is better with probability {probability:.3f}"
    return {**row, **_asked(compared)} if row else NoLabel(prompt, responses, told, compared.tools)


def _asked(one: Compared | Revised | NoLabel) -> dict[str, Any]:
    """The columns of a row with what a response answers."""
    return {"prompt": one.prompt, **({TOOLS: list(one.tools)} if one.tools else {})}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    replace_durably(path, text.encode("utf-8", "replace"))
